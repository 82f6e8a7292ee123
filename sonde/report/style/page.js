"use strict";
(() => {
  const root = document.documentElement;
  const find = (selector, from = document) => [...from.querySelectorAll(selector)];
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const printWidth = 660;

  // A colour in a figure may be "var(--name)": plotly cannot read that, so the value of the moment goes in.
  const painted = (value, style) => {
    if (typeof value === "string" && value.startsWith("var(")) {
      return style.getPropertyValue(value.slice(4, -1)).trim();
    }
    if (Array.isArray(value)) return value.map((item) => painted(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, style)]));
    }
    return value;
  };

  const draw = async (width) => {
    if (!window.Plotly) return;
    const style = getComputedStyle(root);
    const config = { responsive: true, displayModeBar: false, showTips: false };
    for (const box of find(".plot")) {
      const figure = painted(figures[box.dataset.figure], style);
      if (width) Object.assign(figure.layout, { width, autosize: false });
      await Plotly.react(box, figure.data, figure.layout, config);
    }
    root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
  };

  const loadPlotly = async () => {
    const packed = document.getElementById("plotly");
    if (!packed) return;
    const bytes = Uint8Array.from(atob(packed.textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
  };

  const showFailure = (error) => {
    for (const box of find(".plot")) box.textContent = `This plot could not be drawn here: ${error.message}`;
    console.error(error);
  };

  // Paper is white whatever the screen is.
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    draw(printWidth);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    draw();
  });
  dark.addEventListener("change", () => draw());

  for (const group of find(".switch")) {
    group.addEventListener("change", (event) => {
      const box = find(`#${group.dataset.target} .plot`)[0];
      box.dataset.figure = event.target.value;
      draw();
    });
  }

  const asNumber = (cell) => {
    const text = cell.dataset.v;
    return text === "inf" ? Infinity : text === "nan" ? NaN : text === "" ? NaN : Number(text);
  };
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    const [u, v] = [asNumber(x), asNumber(y)];
    if (Number.isNaN(u) || Number.isNaN(v)) return sign * x.dataset.v.localeCompare(y.dataset.v, "en", { numeric: true });
    return u === v ? 0 : sign * (u - v);
  };

  for (const table of find("table.ranked")) {
    const body = table.tBodies[0];
    const first = Number(table.dataset.first);
    let folded = body.rows.length > first + 3;
    const fold = () => [...body.rows].forEach((row, i) => { row.hidden = folded && i >= first; });
    find("thead th", table).forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        find("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...[...body.rows].sort(compare(column, down ? -1 : 1)));
        fold();
      });
    });
    if (folded) {
      const more = document.createElement("button");
      more.type = "button";
      more.className = "more";
      more.textContent = `Show all ${body.rows.length} plans`;
      more.addEventListener("click", () => { folded = false; fold(); more.remove(); });
      table.parentElement.after(more);
      fold();
    }
  }

  const copied = document.getElementById("copied");
  for (const button of find("button.copy")) {
    button.addEventListener("click", async () => {
      const code = find("code", button.parentElement)[0];
      let word = "Copied";
      try {
        await navigator.clipboard.writeText(`${code.textContent}\n`);
      } catch {
        getSelection().selectAllChildren(code);
        word = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
      }
      button.textContent = word;
      if (copied) copied.textContent = word;
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  loadPlotly().then(() => draw()).catch(showFailure).finally(() => { root.dataset.ready = "true"; });
})();

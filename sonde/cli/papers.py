"""`sonde papers` and `sonde reproduce`: what papers claim, and what comes out here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sonde.cli.output import console, emit, json_option, note, progress
from sonde.errors import InputError


@click.command()
@json_option
def papers(as_json: bool) -> None:
    """List the papers whose claims Sonde tries, with what came out when that was last saved.

    The status is "reproduced" where every claim came out, "open" where none did, else "partly". `sonde reproduce ID`
    tries one now.
    """
    from sonde.papers.frame.shelf import listing

    rows = listing()
    if as_json:
        emit(rows)
        return
    from sonde.report.tables import rows_table

    shown = [
        {
            "paper": row["id"], "status": row["status"], "claim": row["claim"],
            "claimed": figure(row["paper"], row["unit"]), "ours": figure(row["ours"], row["unit"]),
            "tried": row["date"] or "never",
        }
        for row in rows
    ]  # fmt: skip
    console().print(rows_table(f"Papers ({len(rows)})", shown))
    note("`ours` is from the day it was tried on; sonde reproduce ID tries a paper now")


@click.command()
@click.argument("name", metavar="ID", required=False)
@click.option("--all", "everything", is_flag=True, help="Try every paper.")
@click.option("--save", "keep", is_flag=True, help="Keep the results for `sonde papers` to show.")
@json_option
def reproduce(name: str | None, everything: bool, keep: bool, as_json: bool) -> None:
    """Try the claims of one paper now, through Sonde's own simulator and models.

    Prints for every claim the paper's figure, ours, that of a control in which the technique must not help, the
    spread over seeds, and why they differ. The exit code is 0 whether or not the claims come out.
    """
    from sonde.papers.frame import shelf

    if (name is None) != everything:
        given = "neither" if name is None else "both"
        raise InputError("ID, --all", given, "needs exactly one of them", f"known: {', '.join(shelf.paper_ids())}")
    found = []
    with progress() as tell:
        for one in shelf.paper_ids() if everything else [str(name)]:
            found.append(shelf.record(one, shelf.reproduce(one, tell)))
    if keep:
        shelf.save(found)
    if as_json:
        emit(found if everything else found[0])
        return
    for it in found:
        show(it)


def show(it: Mapping[str, Any]) -> None:
    """Print what came of one paper as a table, with its notes."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    screen = console()
    colour = {"reproduced": "green", "partly": "yellow", "open": "red"}[it["status"]]
    screen.print(Text.assemble((f"{it['title']}", "bold"), f"  {it['venue']} {it['year']}  {it['link']}  ",
                               (it["status"], colour)))  # fmt: skip
    sheet = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim", expand=True)
    sheet.add_column("", no_wrap=True)
    sheet.add_column("claim", ratio=4)
    for head in ("paper", "ours", "control"):
        sheet.add_column(head, justify="right", no_wrap=True)
    sheet.add_column("spread", justify="right", no_wrap=True)
    sheet.add_column("why they differ", ratio=3)
    for row in it["rows"]:
        mark = Text("✓", "green") if row["holds"] else Text("✗" if row["ours"] is not None else "-", "red")
        said = Text.assemble(row["claim"], (f"\n{row['setup']}", "dim"))
        if row["control_is"]:
            said.append(f"\ncontrol: {row['control_is']}", "dim")
        spread = "–".join(f"{end:.3g}" for end in row["spread"]) if row["spread"] else ""
        control = "" if row["control"] is None else figure(row["control"], "")
        figures = [figure(row[key], row["unit"]) for key in ("paper", "ours")]
        sheet.add_row(mark, said, *figures, control, spread, Text(row["why"], "dim"))
    screen.print(sheet)
    for text in it["notes"]:
        screen.print(Text(f" {text}", "dim"))


def figure(value: float | None, unit: str) -> str:
    """Return a figure with its unit, "-" where there is none."""
    if value is None:
        return "-"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.4g}"
    return f"{number} {unit}".rstrip()

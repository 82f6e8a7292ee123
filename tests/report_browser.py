"""A real Chromium, headless and alone: it opens one page and tells what the page did."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
)  # fmt: skip


def missing() -> str:
    """Return why no browser can be had here, or an empty string."""
    if not CHROMIUM or not DRIVER:
        return "no Chromium: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium: pip install selenium"
    return ""


class Browser:
    """Chromium with one window; `close` ends it and its driver."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.service = Service(executable_path=str(DRIVER))
        self.driver = webdriver.Chrome(options=options, service=self.service)
        self.driver.set_page_load_timeout(30)
        self.driver.set_script_timeout(30)
        self.driver.get("about:blank")
        self.complaints(), self.requests()  # what the browser's own first tab did

    def close(self) -> None:
        """End the browser and its driver, whatever state they are in."""
        with suppress(Exception):
            self.driver.quit()
        process = self.service.process
        if process is not None:
            with suppress(Exception):
                process.terminate()
                process.wait(5)
            if process.poll() is None:
                process.kill()
                process.wait(5)

    def open(self, page: Path, scheme: str = "light", width: int = 1280, height: int = 900) -> None:
        """Open a page in a colour scheme and a size, and wait until it has drawn (30 s at most)."""
        self.emulate(scheme)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(page.as_uri())
        self.wait("document.documentElement.dataset.ready === 'true'")

    def emulate(self, scheme: str) -> None:
        """Make the browser prefer a colour scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.driver.execute_script(f"return ({expression})")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true (30 s at most)."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 30, 0.05).until(lambda _: self.run(expression))

    def complaints(self) -> list[str]:
        """Return what the console said as a warning or an error since the last call."""
        return [f"{row['level']}: {row['message']}" for row in self.driver.get_log("browser") if row["level"] != "INFO"]

    def requests(self) -> list[str]:
        """Return the addresses asked for since the last call, but for data held in the page itself."""
        messages = [json.loads(row["message"])["message"] for row in self.driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]

    def picture(self, path: Path) -> Path:
        """Write a picture of the whole page to `path`."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def paper(self, path: Path) -> Path:
        """Write the page as it prints, a PDF, to `path`."""
        printed = self.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": False})
        path.write_bytes(base64.b64decode(printed["data"]))
        return path


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Hold a browser whose profile is the empty folder `profile`, and end it afterwards."""
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()

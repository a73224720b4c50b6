"""Takes the console's pictures of a service that has been used: python docs/screenshots.py http://127.0.0.1:8080"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

DIRECTORY = Path(__file__).parent / "pictures"
PROMPT = "My lamp arrived broken. Can you help?"
WIDE, NARROW = 1280, 390
"""Widths of a window and of a phone, in CSS pixels."""


class Shot(NamedTuple):
    """A picture of one view."""

    view: str
    scheme: Literal["light", "dark"]
    width: int = WIDE

    @property
    def file(self) -> Path:
        return DIRECTORY / f"console-{self.view}-{self.scheme}{'-narrow' if self.width == NARROW else ''}.png"


SHOTS = (
    Shot("overview", "light"),
    Shot("overview", "dark"),
    Shot("versions", "light"),
    Shot("pairs", "light"),
    Shot("playground", "dark"),
    Shot("overview", "dark", NARROW),
    Shot("versions", "light", NARROW),
    Shot("pairs", "dark", NARROW),
    Shot("playground", "light", NARROW),
)


def main(url: str) -> None:
    DIRECTORY.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for shot in SHOTS:
            with opened(browser, url, shot) as page:
                picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
            picture.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(shot.file, optimize=True)
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, shot: Shot) -> Iterator[Page]:
    """The view with what a reader would see first: one version's verdict opened, one prompt answered."""
    size = {"width": shot.width, "height": 300}
    context = browser.new_context(color_scheme=shot.scheme, viewport=size, locale="en-GB")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{url}/console/#{shot.view}")
    page.locator("main .card").first.wait_for()
    page.locator("#status.good").wait_for()
    if shot.view == "playground":
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_label("Candidates").fill("4")
        page.get_by_label("Maximum tokens").fill("40")
        page.get_by_role("button", name="Draw").click()
        page.locator(".answer.single").wait_for()
    if shot.view == "versions" and shot.width == WIDE:
        page.locator("tr.champion summary").first.click()
    page.wait_for_timeout(500)  # until the charts are drawn
    page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    yield page
    context.close()


if __name__ == "__main__":
    main(sys.argv[1])

"""Takes the console's pictures of a service that has been used: python docs/screenshots.py http://127.0.0.1:8080"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

DIRECTORY = Path(__file__).parent / "pictures"
PROMPT = "My lamp arrived broken. Can you help?"


def main(url: str) -> None:
    DIRECTORY.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for view, scheme in (
            ("overview", "light"),
            ("overview", "dark"),
            ("versions", "light"),
            ("pairs", "light"),
            ("playground", "dark"),
        ):
            context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 300})  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(f"{url}/console/#{view}")
            page.locator("main .card").first.wait_for()
            if view == "playground":
                page.get_by_label("Prompt").fill(PROMPT)
                page.get_by_label("Candidates").fill("4")
                page.get_by_label("Longest, tokens").fill("40")
                page.get_by_role("button", name="Draw").click()
                page.locator(".answer.single").wait_for()
            if view == "versions":
                page.locator("main summary").first.click()
            page.wait_for_timeout(500)
            page.evaluate("scrollTo(0, 0)")
            shot = Image.open(BytesIO(page.screenshot(full_page=True)))
            shot.convert("RGB").quantize(256, kmeans=4, dither=Image.Dither.NONE).save(
                DIRECTORY / f"console-{view}-{scheme}.png", optimize=True
            )
            context.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])

"""How the console is laid out, in a real Chromium: on a phone, in both themes, by keyboard."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.support.service.consoles import MARKS, chromium, filled, opened
from tests.support.service.running_service import settings_in

pytestmark = MARKS

VIEWS = ("overview", "versions", "pairs", "playground")
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  const shown = box.width > 1 && box.height > 1 && !element.closest(".skip, svg, .u-over, .u-axis, dialog");
  return shown && (box.left < -0.5 || box.right > innerWidth + 0.5 || element.scrollWidth > element.clientWidth + 1
    && getComputedStyle(element).overflowX !== "visible" && !element.matches("select, textarea, .hidden"));
}).map((element) => `${element.tagName}.${element.className}: ${element.textContent.slice(0, 40)}`)"""
"""Elements that are wider than the page or than what holds them: cut off, or out of reach without scrolling."""

FAINT = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const [r, g, b, a = 1] = channels(getComputedStyle(element).backgroundColor);
    if (a === 1) return [r, g, b];
    const under = behind(element.parentElement);
    return [r, g, b].map((value, index) => a * value + (1 - a) * under[index]);
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return texts.map((element) => {
    const [a, b] = [light(channels(getComputedStyle(element).color).slice(0, 3)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return [ratio, `${element.className}: ${element.textContent.slice(0, 40)}`];
  }).filter(([ratio]) => ratio < 4.5);
}"""
"""Texts with less contrast than WCAG 2.2 AA asks for."""

NAMELESS = "(one) => !one.labels?.length && !one.ariaLabel && !one.textContent.trim()"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest.mark.parametrize("full", [True, False], ids=["full", "empty"])
async def test_nothing_is_wider_than_a_phone(browser: Browser, tmp_path: Path, full: bool) -> None:
    async with opened(browser, settings_in(tmp_path), viewport={"width": 390, "height": 844}) as console:
        page = console.page
        if full:
            await filled(console.state)
        for view in VIEWS:
            await console.show(view)
            if view == "playground" and full:
                await page.get_by_label("Prompt").fill("Where is my order?")
                await page.get_by_role("button", name="Draw").click()
                await expect(page.locator(".answer")).to_have_count(9)
            await page.evaluate("document.querySelectorAll('main details').forEach((one) => (one.open = true))")
            assert await page.evaluate(OUTSIDE) == [], view
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390, view
        if full:
            await console.show("versions")
            button = page.get_by_role("button", name="Promote")
            await expect(button).to_be_visible()
            box = await button.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
            # Every value stands after the name of its column, and to a screen reader it is a table still.
            await expect(page.get_by_role("columnheader", name="Tokens saved")).to_have_count(1)
            names = await page.locator("tr.champion td").evaluate_all(
                "(cells) => cells.map((cell) => getComputedStyle(cell, '::before').content)"
            )
            assert '"Tokens saved"' in names


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out(browser: Browser, tmp_path: Path, scheme: str) -> None:
    async with opened(browser, settings_in(tmp_path), color_scheme=scheme) as console:
        page = console.page
        await filled(console.state)
        for view in VIEWS:
            await console.show(view)
            await page.evaluate("document.querySelectorAll('main details').forEach((one) => (one.open = true))")
            assert await page.evaluate(FAINT) == [], view


async def test_the_theme_is_the_systems_or_ones_own(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path), color_scheme="dark") as console:
        page = console.page
        await console.show("overview")
        background = "getComputedStyle(document.body).backgroundColor"
        dark = await page.evaluate(background)
        await page.get_by_role("button", name="Theme: auto").click()
        await expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
        assert await page.evaluate(background) != dark


async def test_it_works_by_keyboard_and_for_screen_readers(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path), reduced_motion="reduce") as console:
        page = console.page
        await filled(console.state)
        await console.show("versions")
        await expect(page.locator("tr.champion")).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await expect(page.locator("nav [aria-current=page]")).to_have_text("Versions")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Versions")
        for view in VIEWS:
            await console.show(view)
            controls = page.locator("input:visible, select, textarea, button:visible")
            assert await controls.evaluate_all(f"(all) => all.filter({NAMELESS}).length") == 0
            moving = "(one) => getComputedStyle(one).transitionDuration !== '0s'"
            assert await page.locator("button, a").evaluate_all(f"(all) => all.filter({moving}).length") == 0

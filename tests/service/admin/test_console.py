"""The console in a real Chromium, against a real service on the fakes."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from pydantic import SecretStr

from tests.support.service.consoles import MARKS, chromium, filled, opened, tell_training, tile
from tests.support.service.running_service import BASE, settings_in

pytestmark = MARKS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


async def test_every_view_shows_what_the_service_knows(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        version = await filled(console.state)
        page = console.page
        await console.open()
        await expect(page).to_have_title("Overview · bonbon console")
        await expect(page.locator("#status")).to_have_text("ready")
        await expect(page.locator(".tile.name .figure")).to_have_text(version.name)
        await expect(page.locator(".tile .title").nth(0)).to_have_text("As good as best-of-n?")
        await expect(page.locator(".tile .title").nth(1)).to_have_text("Tokens saved since promotion")
        await expect(tile(page, "Live win rate")).to_contain_text("80.0%")
        await expect(page.locator("canvas")).to_have_count(4)
        served = tile(page, "Against best-of-n")
        await expect(served).to_contain_text("53.0%")
        await expect(served).to_contain_text("The best of 2 draws against the best of 8 draws of tiny")
        await expect(tile(page, "Expected saving")).to_contain_text("72.5%")
        await expect(tile(page, "Expected saving")).to_contain_text("k\u00a0=\u00a02")
        await page.get_by_role("link", name="Versions").click()
        await expect(page).to_have_title("Versions · bonbon console")
        await expect(page.locator("main")).to_be_focused()
        await expect(page.locator("tbody tr")).to_have_count(3)
        champion = page.locator("tr.champion").locator("td")
        await expect(champion).to_contain_text(["82.0%", "53.0%", "2", "72.5%", "1.30", "87.0%", "passed"])
        bad = page.locator("tr", has_text="refused").locator("td")
        await expect(bad).to_contain_text(["51.0%", "One draw against the best of 8 draws of tiny", "–", "–", "1.30"])
        await page.locator("tr", has_text="refused").locator("summary").click()
        await expect(page.locator("li.bad")).to_have_text("<b>loses</b>")  # as text, not as markup
        await page.get_by_role("link", name="Pairs and training").click()
        await expect(page.locator("canvas")).to_have_count(2)
        waits_for = f"The next round waits for 999 more clean groups of {version.name} (1 of 1000)."
        await expect(tile(page, "Next round")).to_contain_text(waits_for)
        await expect(page.get_by_text("epoch 0.90 of 3.00")).to_be_visible()
        outcomes = page.locator("[data-column=Outcome]")
        await expect(outcomes).to_contain_text(["–", "The gate refused fake-bonbon-0002-"])
        await tell_training(console.state, epoch=4.5)
        await expect(page.get_by_text("3.00 epochs on logged groups, and 1.50 on its own draws")).to_be_visible()
        await page.locator("figure summary").first.click()
        await expect(page.locator("figure").first.locator(".figures tbody tr")).to_have_count(4)


async def test_promotion_and_rollback_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        page, registry = console.page, console.state.registry
        version = await filled(console.state)
        await console.open("versions")
        back = page.get_by_role("button", name=f"Roll back to {BASE}")
        await back.focus()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Escape")
        assert await registry.champion() == version.name
        await back.focus()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.locator(".news")).to_have_text(f"{BASE} answers requests now.")
        assert await registry.champion() == BASE
        await page.locator("tr", has_text=version.name).get_by_role("button", name=f"Promote {version.name}").click()
        await page.locator("#ask-yes").click()
        await expect(page.locator("tr.champion")).to_contain_text(version.name)
        assert console.state.router.champion == version.name


async def test_what_the_service_refuses_is_said(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        version = await filled(console.state)
        await console.open("versions")
        await console.page.get_by_role("button", name=f"Promote {BASE}").click()
        await console.state.registry.rollback()  # somebody else is faster
        await console.page.locator("#ask-yes").click()
        await expect(console.page.locator(".news.bad")).to_contain_text("another promotion came first")
        await expect(console.page.locator("tr.champion")).to_contain_text(BASE)
        await console.page.get_by_role("button", name=f"Promote {version.name}").wait_for()
        await expect(console.page.get_by_role("button", name="Promote")).to_have_count(1)  # none for what is refused


async def test_the_key_is_asked_for_and_stays_in_the_tab(browser: Browser, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, admin_key=SecretStr("open sesame"))
    async with opened(browser, settings) as console:
        page = console.page
        await filled(console.state)
        await console.open()
        for key in ("wrong", "open sesame"):
            await page.locator("#key-field").fill(key)
            await page.keyboard.press("Enter")
            await expect(page.locator("#key-dialog")).to_be_hidden() if key != "wrong" else None
        await expect(page.locator(".tiles").first).to_be_visible()
        await page.reload()
        await expect(page.locator(".tiles").first).to_be_visible()
        assert await page.evaluate("Object.values(localStorage).join()") == "auto"
        assert await page.evaluate("document.cookie") == ""
        other = await page.context.new_page()
        await other.goto(f"{console.url}/console/")
        await expect(other.locator("#key-dialog")).to_be_visible()


async def test_the_playground_shows_the_candidates_beside_one_draw(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        page = console.page
        version = await filled(console.state)
        await console.open("playground")
        await page.get_by_label("Prompt").fill("Where is my order?")
        await page.get_by_label("Candidates").fill("5")
        monkeypatch.setattr(console.state.engine, "_delay", 2.0)  # seconds for each token
        await page.get_by_label("Prompt").press("Control+Enter")
        await expect(page.locator(".answer .text")).to_contain_text(re.compile(r"\w"))
        await expect(page.locator(".answer")).to_have_count(1)
        monkeypatch.setattr(console.state.engine, "_delay", 0.0)
        await expect(page.locator(".answer")).to_have_count(6)
        await expect(page.locator(".answer.best")).to_have_count(1)
        await expect(page.locator("#result .card").last).to_contain_text(version.name)
        await page.wait_for_timeout(100)
        assert await page.get_by_label("Prompt").input_value() == "Where is my order?"


async def test_no_other_page_may_use_what_the_browser_knows(browser: Browser, tmp_path: Path) -> None:
    """A page of another site can neither frame the console nor promote a version through its visitor's browser."""
    async with opened(browser, settings_in(tmp_path)) as console:
        version = await filled(console.state)
        stranger = await browser.new_page()
        await stranger.route("http://stranger.example/", lambda route: route.fulfill(body="<p>hello"))
        await stranger.goto("http://stranger.example/")
        post = f"fetch('{console.url}/admin/rollback', {{method: 'POST', mode: 'no-cors'}}).then(() => 'sent', String)"
        await stranger.evaluate(post)
        assert await console.state.registry.champion() == version.name
        await stranger.close()

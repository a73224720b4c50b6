"""The console in a real Chromium, against a real service on the fakes."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Playwright, Request, async_playwright, expect
from pydantic import SecretStr

from bonbon.demo.service_process import free_port
from bonbon.pairs.group_records import Comparison
from bonbon.pairs.live.savings import TokenCounts, add_savings
from bonbon.registry.round_progress import CurvePoint, RoundStage, store_round_progress
from bonbon.registry.version_records import Version
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import GateSettings, Settings
from service.app import create_app
from service.app_state import AppState
from tests.support.data.groups import scored_group
from tests.support.models.evaluations import estimate, evaluation
from tests.support.service.running_service import BASE, WatchedEngine, new_version, settings_in
from trainer.evaluation.gate import judge

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.asyncio(loop_scope="module"),
]

expect.set_options(timeout=30_000)  # milliseconds; a loaded machine draws slowly

VIEWS = ("overview", "versions", "pairs", "playground")
REFUSED = re.compile("status of 40[0139]")
EVALUATION = evaluation(win_rate=estimate(0.82))
"""By its verdict two draws win 53 % against best-of-8 of the base, and save 72.5 % of the tokens."""


@dataclass
class Console:
    """A page at a service, and everything it did that it should not."""

    page: Page
    state: AppState
    url: str
    wrong: list[str]

    async def open(self, view: str = "overview") -> None:
        await self.page.goto(f"{self.url}/console/#{view}")


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[AppState, str]]:
    app = create_app(settings, engine=WatchedEngine(), reward=FakeReward())
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    with uncaught(server):
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield app.state.bonbon, f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await serving


@contextmanager
def uncaught(server: uvicorn.Server) -> Iterator[None]:
    """pytest's own handlers stay."""

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    server.capture_signals = nothing  # type: ignore[method-assign]
    yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    playwright: Playwright
    async with async_playwright() as playwright:
        # Chromium refuses its sandbox to root, which is who runs in a container.
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        await launched.close()


@asynccontextmanager
async def opened(browser: Browser, settings: Settings, **context: Any) -> AsyncIterator[Console]:
    """A console whose page must log no error and send nothing to other hosts."""
    async with served(settings) as (state, url):
        page = await (await browser.new_context(**context)).new_page()
        console = Console(page, state, url, [])

        def watch(request: Request) -> None:
            if not request.url.startswith(url):
                console.wrong.append(request.url)

        def said(message: ConsoleMessage) -> None:
            if message.type == "error" and not REFUSED.search(message.text):
                console.wrong.append(message.text)

        page.on("request", watch)
        page.on("pageerror", lambda error: console.wrong.append(str(error)))
        # A refused request is logged by the browser itself.
        page.on(
            "console",
            lambda m: console.wrong.append(m.text) if m.type == "error" and not REFUSED.search(m.text) else None,
        )
        yield console
        await page.context.close()
    assert console.wrong == []


async def filled(state: AppState) -> Version:
    """Groups, a measured champion with audits, a version that the gate refused, and a round at work."""
    for number in range(20):
        await state.pair_log.append(scored_group(number, version=BASE))
    version = await new_version(state.registry, 1)
    await state.registry.record_evaluation(version.name, EVALUATION.to_dict())
    await state.registry.approve(version.name, judge(EVALUATION, GateSettings()).to_dict())
    await state.registry.promote(version.name)
    refused = await new_version(state.registry, 2)
    await state.registry.record_evaluation(refused.name, evaluation(win_rate=estimate(0.51)).to_dict())
    await state.registry.refuse(refused.name, {"passed": False, "reasons": [{"text": "<b>loses</b>", "passed": False}]})
    await state.swapper.converge()
    group = scored_group(99, version=version.name)
    await state.pair_log.append(group)
    for number in range(40):
        won = 1.0 if number % 5 else -1.0
        comparison = Comparison(group.id, datetime.now(UTC), version.name, BASE, "fake", "1", won, 0.0, k=2)
        await state.pair_log.append_comparison(comparison)
        against_best = replace(comparison, opponent="best-of-4", reward=float(number % 2))
        await state.pair_log.append_comparison(replace(against_best, opponent_reward=0.5))
    drawn = TokenCounts(answers=1000, answer_tokens=60_000, audits=40, audit_tokens=20_000, best_of_n_tokens=6_400)
    await add_savings(state.database, version.name, 4, drawn)
    await tell_training(state, epoch=0.9)
    return version


async def tell_training(state: AppState, *, epoch: float) -> None:
    """A round is at this of three epochs."""
    curve = tuple(CurvePoint(epoch * step / 9, 2.0 - step / 10, step, 18.2) for step in range(10))
    await store_round_progress(
        state.database, "r", run="round-1", sampler=BASE, epochs=3, stage=RoundStage.TRAINING, curve=curve
    )


def tile(page: Page, title: str) -> Locator:
    return page.locator(".tile", has=page.get_by_role("heading", name=title, exact=True))


async def test_every_view_shows_what_the_service_knows(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        version = await filled(console.state)
        page = console.page
        await console.open()
        await expect(page.locator("#status")).to_have_text("ready")
        await expect(page.locator(".tile.name .figure")).to_have_text(version.name)
        await expect(tile(page, "As good as best-of-n?")).to_contain_text("50.0 %")
        await expect(tile(page, "Tokens saved since promotion")).to_contain_text("50.0 %")
        await expect(tile(page, "Tokens saved since promotion")).to_contain_text("80,000 of best-of-4's")
        await expect(tile(page, "Live win rate")).to_contain_text("80.0 %")
        await expect(page.locator("canvas")).to_have_count(2)
        await expect(tile(page, "Against what was served")).to_contain_text("53.0 %")
        await expect(tile(page, "Against what was served")).to_contain_text("best of 2 against best of 8 of tiny")
        await expect(tile(page, "Expected saving")).to_contain_text("72.5 %")
        await expect(tile(page, "Expected saving")).to_contain_text("k = 2")
        await page.get_by_role("link", name="Versions").click()
        await expect(page.locator("tbody tr")).to_have_count(3)
        champion = page.locator("tr.champion").locator("td")
        await expect(champion).to_contain_text(["82.0 %", "2", "72.5 %", "53.0 %", "1.30", "87.0 %", "passed"])
        bad = page.locator("tr", has_text="refused").locator("td")
        await expect(bad).to_contain_text(["51.0 %", "–", "–", "one draw against best of 8 of tiny", "1.30"])
        await page.locator("tr", has_text="refused").locator("summary").click()
        await expect(page.locator("li.bad")).to_have_text("<b>loses</b>")  # as text, not as markup
        await page.get_by_role("link", name="Pairs and training").click()
        await expect(page.locator("canvas")).to_have_count(2)
        waits_for = f"The next round waits for 999 more clean groups of {version.name} (1 of 1000)."
        await expect(tile(page, "To the next round")).to_contain_text(waits_for)
        await expect(page.get_by_text("epoch 0.90 of 3.00")).to_be_visible()
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
        await expect(page.locator(".news")).to_have_text(f"{BASE} answers now")
        assert await registry.champion() == BASE
        await page.locator("tr", has_text=version.name).get_by_role("button", name="Promote").click()
        await page.locator("#ask-yes").click()
        await expect(page.locator("tr.champion")).to_contain_text(version.name)
        assert console.state.serving.champion == version.name


async def test_what_is_refused_is_said(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        version = await filled(console.state)
        await console.open("versions")
        row = console.page.locator("tr", has=console.page.locator(".badge.refused")).first
        await row.get_by_role("button", name="Promote").click()
        await console.page.locator("#ask-yes").click()
        await expect(console.page.locator(".news.bad")).to_contain_text("refused")
        assert console.state.serving.champion == version.name


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
        await expect(page.locator(".tiles")).to_be_visible()
        await page.reload()
        await expect(page.locator(".tiles")).to_be_visible()
        assert await page.evaluate("Object.values(localStorage).join()") == "auto"
        assert await page.evaluate("document.cookie") == ""
        other = await page.context.new_page()
        await other.goto(f"{console.url}/console/")
        await expect(other.locator("#key-dialog")).to_be_visible()


async def test_the_playground_shows_the_candidates_beside_one_draw(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        page = console.page
        version = await filled(console.state)
        await console.open("playground")
        await page.get_by_label("Prompt").fill("Where is my order?")
        await page.get_by_label("Candidates").fill("5")
        await page.get_by_label("Prompt").press("Control+Enter")
        await expect(page.locator(".answer")).to_have_count(6)
        await expect(page.locator(".answer.best")).to_have_count(1)
        await expect(page.locator(".card", has_text="One draw")).to_contain_text(version.name)
        await page.wait_for_timeout(100)
        assert await page.get_by_label("Prompt").input_value() == "Where is my order?"


async def test_it_is_light_and_dark_and_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path), color_scheme="dark") as console:
        page = console.page
        await filled(console.state)
        await console.open()
        background = "getComputedStyle(document.body).backgroundColor"
        dark = await page.evaluate(background)
        await page.get_by_role("button", name="Theme: auto").click()
        assert await page.get_by_role("button", name="Theme: light").is_visible()
        assert await page.evaluate(background) != dark
        await page.set_viewport_size({"width": 390, "height": 800})
        for view in VIEWS:
            await page.goto(f"{console.url}/console/#{view}")
            await expect(page.locator("main .card").first).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view


async def test_no_other_page_may_use_what_the_browser_knows(browser: Browser, tmp_path: Path) -> None:
    """A page from elsewhere can neither frame the console nor promote with its visitor's browser."""
    async with opened(browser, settings_in(tmp_path)) as console:
        version = await filled(console.state)
        stranger = await browser.new_page()
        await stranger.route("http://stranger.example/", lambda route: route.fulfill(body="<p>hello"))
        await stranger.goto("http://stranger.example/")
        post = f"fetch('{console.url}/admin/rollback', {{method: 'POST', mode: 'no-cors'}}).then(() => 'sent', String)"
        await stranger.evaluate(post)
        assert await console.state.registry.champion() == version.name
        await stranger.close()

"""A real service on the fakes, and its console in a real Chromium."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, async_playwright, expect

from bonbon.pairs.group_records import Comparison
from bonbon.pairs.live.savings import TokenCounts, add_savings
from bonbon.registry.round_progress import REFUSED, CurvePoint, RoundStage, store_round_progress
from bonbon.registry.version_records import Version
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import GateSettings, Settings
from service.app import create_app
from service.app_state import AppState
from tests.support.data.groups import scored_group
from tests.support.models.evaluations import estimate, evaluation
from tests.support.needs import needs
from tests.support.service.hosting import served_on_this_loop
from tests.support.service.running_service import BASE, WatchedEngine, new_version
from trainer.evaluation.gate import judge

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARKS = [
    needs(CHROMIUM, "Chromium is not installed: apt-get install chromium"),
    pytest.mark.asyncio(loop_scope="module"),
]
"""What every module of tests with a browser is marked with."""

expect.set_options(timeout=30_000)  # milliseconds; a loaded machine draws slowly

REFUSED_REQUEST = re.compile("status of 40[0139]")
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

    async def show(self, view: str) -> None:
        """Open a view and wait until nothing of the one before is left."""
        await self.open(view)
        title = await self.page.locator(f"nav a[href='#{view}']").inner_text()
        await expect(self.page.get_by_role("heading", level=1)).to_have_text(title)


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[AppState, str]]:
    app = create_app(settings, engine=WatchedEngine(), reward=FakeReward())
    async with served_on_this_loop(app) as url:
        yield app.state.bonbon, url


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
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

        # A refused request is logged by the browser itself.
        def said(message: ConsoleMessage) -> None:
            if message.type == "error" and not REFUSED_REQUEST.search(message.text):
                console.wrong.append(message.text)

        page.on("request", watch)
        page.on("pageerror", lambda error: console.wrong.append(str(error)))
        page.on("console", said)
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
    await store_round_progress(
        state.database, "q", run="round-0", sampler=BASE, epochs=1, stage=RoundStage.FINISHED, curve=(),
        version=refused.name, outcome=REFUSED,
    )  # fmt: skip
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

"""What the console says, in a real Chromium: its figures are the API's, and where there are none it says what to do."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, Locator, expect

from bonbon.engines.engine import VersionKind
from bonbon.files.manifest import MANIFEST, make_manifest
from bonbon.pairs.live.savings import TokenCounts, add_savings
from bonbon.registry.transfer.version_import import Source, import_version
from bonbon.registry.version_records import Version
from bonbon.settings import GateSettings
from tests.support.data.groups import scored_group
from tests.support.service.consoles import EVALUATION, MARKS, Console, chromium, filled, opened, tile
from tests.support.service.running_service import BASE, new_version, settings_in, write_adapter
from trainer.evaluation.gate import judge

pytestmark = MARKS

QUALITY, SAVED = "As good as best-of-n?", "Tokens saved since promotion"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


async def fetched(console: Console, path: str) -> Any:
    return await (await console.page.request.get(f"{console.url}/admin/{path}")).json()


async def length(bar: Locator) -> float:
    """How much of a bar is filled, as drawn."""
    return float(await bar.evaluate("(bar) => bar.firstChild.getBoundingClientRect().width / bar.clientWidth"))


async def test_the_first_tiles_say_what_the_service_says_of_the_champion(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        version = await filled(console.state)
        retired = TokenCounts(answers=9, answer_tokens=9, audits=9, audit_tokens=9, best_of_n_tokens=999_999)
        await add_savings(console.state.database, "retired", 4, retired)
        await console.show("overview")
        live = await fetched(console, "win-rate")
        saved = live["savings"]
        best_of_n = next(one for one in live["win_rates"] if one["opponent"] == "best-of-4" and one["k"] == live["k"])
        assert (live["champion"], live["base"], live["n"], live["k"]) == (version.name, BASE, 4, 2)
        assert saved["saved_tokens"] == 80_000
        quality, saving = tile(console.page, QUALITY), tile(console.page, SAVED)
        await expect(quality.locator(".figure")).to_contain_text(f"{best_of_n['win_rate']:.1%}")
        await expect(quality).to_contain_text(f"95% band {best_of_n['low']:.1%} to {best_of_n['high']:.1%}")
        await expect(quality.locator(".badge")).to_have_text("no difference shown")
        await expect(saving.locator(".figure")).to_have_text(f"{saved['saved_share']:.1%}")
        answers = f"{saved['saved_tokens']:,} tokens fewer than best-of-4 of {BASE} takes for the same 1,000 answers"
        await expect(saving).to_contain_text(answers)
        assert abs(await length(quality.locator(".bar")) - best_of_n["win_rate"]) < 0.01
        assert abs(await length(saving.locator(".bar")) - saved["saved_share"]) < 0.01
        drawn = TokenCounts(answer_tokens=200_000)
        await add_savings(console.state.database, version.name, 4, drawn)
        await expect(saving.locator(".figure")).to_have_text("-75.0%")
        await expect(saving).to_contain_text("120,000 tokens more than best-of-4")
        assert await length(saving.locator(".bar")) == 0


async def test_every_bar_is_as_long_as_the_figure_beside_it(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        page = console.page
        await filled(console.state)
        for number in range(2):
            in_training = scored_group(number, version=f"round-{'a' * 32}-{number}")
            await console.state.pair_log.append(in_training)
        await console.show("versions")
        cells = page.locator("td", has=page.locator(".bar"))
        await expect(cells).to_have_count(5)
        for cell in await cells.all():
            figure = float((await cell.locator("strong").inner_text()).rstrip("%")) / 100
            assert abs(await length(cell.locator(".bar")) - figure) < 0.02
        await console.show("pairs")
        rows = page.locator(".shares > div")
        await expect(rows).to_contain_text([BASE, "versions in training", "fake-bonbon-0001"])
        for row, part in zip(await rows.all(), (20 / 23, 2 / 23, 1 / 23), strict=True):
            await expect(row).to_contain_text(f"({part:.1%})")
            assert abs(await length(row.locator(".bar")) - part) < 0.01
        assert abs(await length(page.locator("section .row .bar")) - 0.3) < 0.01  # epoch 0.9 of 3
        await console.show("playground")
        await page.get_by_label("Prompt").fill("Where is my order?")
        await page.get_by_role("button", name="Draw").click()
        await expect(page.locator(".answer")).to_have_count(9)
        for answer in await page.locator(".answer").all():
            figure = float((await answer.locator("strong").nth(1).inner_text()).rstrip("%")) / 100
            assert abs(await length(answer.locator(".bar")) - figure) < 0.02


async def imported(console: Console, directory: Path) -> Version:
    """What `bonbon models import` makes of a version that the gate of another installation has passed."""
    directory.mkdir()
    write_adapter(directory, 3)
    manifest = make_manifest(directory)
    (directory / MANIFEST).write_text(manifest.to_json())
    base = replace(await console.state.registry.get(BASE), digest="b" * 64)
    source = Source(
        directory,
        beside=(),
        version="far-bonbon-0001",
        kind=VersionKind.ADAPTER,
        digest=manifest.digest,
        base=BASE,
        base_digest=base.digest,
        training={},
        evaluation=EVALUATION.to_dict(),
        verdict=judge(EVALUATION, GateSettings()).to_dict(),
    )
    return await import_version(console.state.registry, source, base)


async def test_an_imported_version_is_not_called_refused(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        page = console.page
        version = await imported(console, tmp_path / "exported")
        await console.show("versions")
        gate = page.locator("tr", has_text=version.name).locator("td").nth(6)
        await expect(gate.locator(".badge")).to_have_text("imported")
        await expect(gate).not_to_contain_text("refused")
        await expect(gate).to_contain_text(f"bonbon evaluate {version.name}")
        await expect(gate).to_contain_text(f"bonbon models promote {version.name} --force")
        await gate.locator("summary").click()
        await expect(gate.locator("li").first).to_contain_text("win rate of one draw")
        await expect(page.get_by_role("button", name="Promote")).to_have_count(0)


async def test_what_is_empty_says_the_next_step(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        page = console.page
        await console.show("overview")
        await expect(page.locator("main .card")).to_have_count(4)
        for title in (QUALITY, SAVED):
            await expect(tile(page, title).locator(".figure")).to_have_text("–")
            await expect(tile(page, title)).to_contain_text("let bonbon loop train a version")
        steps = {
            "overview": ["bonbon loop", "run bonbon loop --now", "bonbon loop", "promote a version"],
            "versions": ["let bonbon loop train one"],
            "pairs": ["send requests", "run bonbon loop", "Send requests", "run bonbon loop"],
            "playground": ["press Draw"],
        }
        for view, texts in steps.items():
            await console.show(view)
            await expect(page.locator(".empty")).to_contain_text(texts)
            for text in await page.locator(".empty").all_inner_texts():
                assert text.rstrip().endswith(".")


async def test_a_champion_without_comparisons_says_what_is_missing(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path)) as console:
        registry = console.state.registry
        version = await new_version(registry, 1)
        await registry.promote(version.name, force=True)
        await console.state.swapper.converge()
        await console.show("overview")
        await expect(tile(console.page, QUALITY)).to_contain_text("set service.audit_budget or service.audit_fraction")
        await expect(tile(console.page, "Measured win rate")).to_contain_text(f"bonbon evaluate {version.name}")
        await registry.promote(BASE)
        await console.state.swapper.converge()
        await expect(tile(console.page, SAVED)).to_contain_text("promote a version on the Versions page")


async def test_times_are_the_viewers_and_exact_when_pointed_at(browser: Browser, tmp_path: Path) -> None:
    async with opened(browser, settings_in(tmp_path), locale="de-DE", timezone_id="Asia/Tokyo") as console:
        await filled(console.state)
        await console.show("pairs")
        first = datetime.fromisoformat((await fetched(console, "pairs"))["first"]).astimezone(UTC)
        shown = tile(console.page, "Groups logged").locator("time")
        local = await console.page.evaluate(
            "(t) => new Intl.DateTimeFormat('de-DE', {dateStyle: 'medium', timeStyle: 'short', timeZone: 'Asia/Tokyo'})"
            ".format(new Date(t))",
            first.isoformat(),
        )
        await expect(shown).to_have_text(local)
        await expect(shown).to_have_attribute("title", f"{first:%Y-%m-%d %H:%M:%S}.{first.microsecond // 1000:03} UTC")

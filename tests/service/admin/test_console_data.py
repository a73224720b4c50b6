"""The console's files and headers, and the data that it reads from /admin."""

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from bonbon.pairs.group_records import Comparison
from bonbon.prompt import Prompt
from bonbon.registry.round_progress import CurvePoint, RoundStage, store_round_progress
from bonbon.rewards.fake_reward import FakeReward
from service.routes.console_files import FILES, SERVED
from tests.support.data.groups import scored_group
from tests.support.service.running_service import BASE, Running, WatchedEngine, new_version, running, settings_in

INSIDE = re.compile(r"""(?:src|href)="(?!#)([^"]+)"|from "(\./[^"]+)\"""")


async def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        redirect = await service.client.get("/console")
        assert (redirect.status_code, redirect.headers["location"]) == (307, "console/")
        page = await service.client.get("/console/")
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert not {"unsafe-inline", "unsafe-eval", "http:", "https:", "*"} & set(re.split(r"[ ;']+", policy))
        assert page.headers["x-content-type-options"] == "nosniff"
        for name, path in SERVED.items():
            response = await service.client.get(f"/console/{name}")
            assert response.content == path.read_bytes()
            assert response.headers["content-security-policy"] == policy
        for name in ("vendor/uplot-LICENSE", "../routes/console.py", "..%2froutes%2fconsole.py", "gone.js"):
            assert (await service.client.get(f"/console/{name}")).status_code == 404


def test_every_file_that_the_page_names_is_there() -> None:
    for path in FILES.glob("*.*"):
        text = path.read_text()
        for groups in INSIDE.findall(text):
            target = groups[0] or groups[1].removeprefix("./")
            assert target in SERVED, (path.name, target)
        assert "innerHTML" not in text
        assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", "")), path.name
        assert len(text.splitlines()) <= 220, path.name
    assert (FILES / "vendor" / "uplot-LICENSE").read_text().startswith("The MIT License")


async def test_everything_but_the_page_needs_the_admin_key(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, admin_key=SecretStr("admin"), api_key=SecretStr("user"))
    paths = ["charts/frontier", "charts/win-rate", "charts/best-of-k", "pairs", "rounds"]
    async with running(settings, engine=WatchedEngine()) as service:
        assert (await service.client.get("/console/")).status_code == 200
        for key, status in ((None, 401), ("wrong", 401), ("user", 403)):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            for path in paths:
                assert (await service.client.get(f"/admin/{path}", headers=headers)).status_code == status, path
            response = await service.client.post("/admin/playground", json={"prompt": "Hi"}, headers=headers)
            assert response.status_code == status


async def test_the_frontier_lies_over_best_of_n(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        body = (await service.client.get("/admin/charts/frontier", params={"kl": 2.5})).json()
        assert body["frontier"][0] == {"kl": 0, "win_rate": 0.5, "n": None}
        assert body["frontier"][-1]["kl"] == 2.5
        assert [point["n"] for point in body["best_of_n"]] == [1, 2, 4, 8, 16, 32]
        for point in body["best_of_n"]:
            over = min(p["win_rate"] for p in body["frontier"] if p["kl"] >= point["kl"])
            assert over >= point["win_rate"] - 1e-9
        assert (await service.client.get("/admin/charts/frontier", params={"kl": 0})).status_code == 400


async def compare(service: Running, version: str, rewards: list[float]) -> None:
    group = scored_group(rewards=(1.0, 0.0), version=version)
    await service.state.pair_log.append(group)
    for reward in rewards:
        comparison = Comparison(group.id, datetime.now(UTC), version, BASE, "helpful", "1", reward, 0.0)
        await service.state.pair_log.append_comparison(comparison)


async def test_the_live_win_rate_counts_ties_as_half_and_narrows(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        version = await service.promoted(1)
        await service.state.swapper.converge()
        empty = (await service.client.get("/admin/charts/win-rate")).json()
        assert (empty["version"], empty["opponent"], empty["points"]) == (version.name, BASE, [])
        await compare(service, version.name, [1.0, 1.0, 0.0, 1.0, 1.0, -1.0, 1.0, 1.0, 0.0, 1.0] * 10)
        body = (await service.client.get("/admin/charts/win-rate")).json()
        assert (body["wins"], body["ties"], body["losses"]) == (70, 20, 10)
        last = body["points"][-1]
        assert (last["count"], last["win_rate"]) == (100, 0.8)
        assert last["low"] < 0.8 < last["high"] < 1
        widths = [point["high"] - point["low"] for point in body["points"]]
        assert widths[-1] < widths[49] < widths[24]
        other = (await service.client.get("/admin/charts/win-rate", params={"version": BASE})).json()
        assert other["points"] == []


async def test_pairs_and_the_curve_are_of_the_log(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine(), reward=FakeReward()) as service:
        assert (await service.client.get("/admin/charts/best-of-k")).status_code == 400
        for number in range(12):
            messages = [{"role": "user", "content": f"Where is order {number}?"}]
            assert (await service.ask(messages=messages)).status_code == 200
        pairs = (await service.client.get("/admin/pairs")).json()
        assert (pairs["groups"], pairs["candidates"], pairs["versions"]) == (12, 48, {BASE: 12})
        assert pairs["clean"] + sum(pairs["unclean"].values()) == 12
        curve = (await service.client.get("/admin/charts/best-of-k")).json()
        assert (curve["groups"], [point["k"] for point in curve["points"]]) == (12, [1, 2, 3, 4])
        rewards = [point["reward"]["value"] for point in curve["points"]]
        assert rewards == sorted(rewards)
        assert curve["points"][0]["gain"] is None


async def test_rounds_are_told_newest_first(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        database = service.state.database
        tell = partial(store_round_progress, database, sampler=BASE, epochs=3)
        await tell("a", run="round-1", stage=RoundStage.SNAPSHOT, curve=())
        curve = (CurvePoint(0.5, 2.0, 1.0, 18.2), CurvePoint(1.0, float("nan"), 4.0, 18.2))
        await tell("a", run="round-1", stage=RoundStage.TRAINING, curve=curve)
        await tell("b", run="round-2", stage=RoundStage.FAILED, curve=(), outcome="no pairs")
        body = (await service.client.get("/admin/rounds")).json()
        assert (body["champion"], body["new_groups"], body["needed"]) == (BASE, 0, 1000)
        assert [(r["run"], r["stage"], r["epoch"]) for r in body["rounds"]] == [
            ("round-2", "failed", 0),
            ("round-1", "training", 1),
        ]
        assert body["rounds"][1]["curve"] == [[0.5, 2, 1, 18.2], [1, None, 4, 18.2]]


async def test_a_log_that_takes_too_long_to_count_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()
    monkeypatch.setattr("service.app.stats", lambda database: never.wait())
    async with running(settings_in(tmp_path), engine=WatchedEngine(), reward=FakeReward()) as service:
        monkeypatch.setattr(service.state.pair_stats, "_seconds", 0.01)
        response = await service.client.get("/admin/pairs")
        assert (response.status_code, response.json()["error"]["message"]) == (
            503,
            "the pair log is still being counted; try again later",
        )


async def test_the_playground_ranks_candidates_beside_one_draw_and_logs_nothing(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine(), reward=FakeReward()) as service:
        version = await service.promoted(1)
        await service.state.swapper.converge()
        asked = {"prompt": "Where is my order?", "n": 6, "max_tokens": 12}
        body = (await service.client.post("/admin/playground", json=asked)).json()
        assert (body["base"], body["version"], body["problem"]) == (BASE, version.name, None)
        rewards = [one["reward"] for one in body["candidates"]]
        assert len(rewards) == 6
        assert rewards == sorted(rewards, reverse=True)
        beaten = sum((body["draw"]["reward"] > r) + (body["draw"]["reward"] == r) / 2 for r in rewards) / 6
        assert body["draw"]["win_probability"] == pytest.approx(beaten)
        assert (await service.client.get("/admin/pairs")).json()["groups"] == 0
        other = await service.client.post("/admin/playground", json=asked | {"version": BASE})
        assert other.json()["version"] == BASE


class Against(FakeReward):
    """A pairwise reward: a text's score is the share of the texts in the call that are no longer than it."""

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        await super().score(prompt, completions)
        return [sum(len(one) >= len(other) for other in completions) / len(completions) for one in completions]


async def test_the_playground_scores_all_answers_in_one_call(tmp_path: Path) -> None:
    reward = Against()
    async with running(settings_in(tmp_path), engine=WatchedEngine(), reward=reward) as service:
        reward.calls.clear()
        asked = {"prompt": "Where is my order?", "n": 6, "max_tokens": 12}
        body = (await service.client.post("/admin/playground", json=asked)).json()
        [scored] = reward.calls
        texts, drawn = [one["text"] for one in body["candidates"]], body["draw"]["text"]
        assert set(scored) == {*texts, drawn}
        beaten = sum((len(drawn) > len(text)) + (len(drawn) == len(text)) / 2 for text in texts) / 6
        assert body["draw"]["win_probability"] == pytest.approx(beaten)
        reward.failure = "it is away"
        body = (await service.client.post("/admin/playground", json=asked)).json()
        assert body["problem"] == "it is away"
        assert {one["reward"] for one in (*body["candidates"], body["draw"])} == {None}


async def test_the_playground_streams_the_draw_and_then_everything(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine(), reward=FakeReward()) as service:
        asked = {"prompt": "Where is my order?", "n": 3, "max_tokens": 12, "stream": True}
        response = await service.client.post("/admin/playground", json=asked)
        assert response.headers["content-type"].startswith("text/event-stream")
        *pieces, last = [json.loads(one.removeprefix("data: ")) for one in response.text.split("\n\n") if one]
        assert len(pieces) > 1
        assert "".join(piece["text"] for piece in pieces) == last["played"]["draw"]["text"]
        assert len(last["played"]["candidates"]) == 3
        gone = await service.client.post("/admin/playground", json=asked | {"version": "gone"})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_playground_refuses_what_the_service_cannot_draw(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, max_best_of=8), engine=WatchedEngine()) as service:
        for wrong, param in (({"n": 9}, "n"), ({"n": 1}, "n"), ({"prompt": ""}, "prompt"), ({"what": 1}, "what")):
            response = await service.client.post("/admin/playground", json={"prompt": "Hi"} | wrong)
            assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        gone = await service.client.post("/admin/playground", json={"prompt": "Hi", "version": "gone"})
        assert gone.status_code == 404


async def test_versions_that_are_not_approved_are_not_promoted_from_the_page(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        version = await new_version(service.state.registry, 1)
        response = await service.client.post("/admin/promote", json={"version": version.name, "expected": BASE})
        assert response.status_code == 400
        assert version.name not in service.state.router.routes.loaded

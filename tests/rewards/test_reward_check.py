"""Tests that a reward that cannot score is detected at the start, before users' requests depend on it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response
from structlog.testing import capture_logs

from bonbon.errors import RewardError
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.rewards.fake_reward import FakeReward
from bonbon.rewards.reward_check import check_reward
from bonbon.settings import RewardSpec
from tests.support.servers.scripted_server import lengths, serving
from tests.support.service.running_service import BASE, WatchedEngine, running, settings_in
from tests.support.until import until


async def test_a_reward_that_scores_is_asked_for_short_and_long_alone_and_at_once() -> None:
    reward = FakeReward()
    await reward.start()
    await check_reward(reward)
    short, long, both, instructed = reward.calls
    assert len(short) == len(long) == len(instructed) == 1
    assert both == (*short, *long)
    assert len(long[0]) > 100 * len(short[0]) / 2


FAULTS: dict[str, tuple[Callable[[Prompt, str], float], str]] = {
    "always": (lambda prompt, text: math.nan, "cannot score a short answer: .*not finite"),
    "long": (lambda prompt, text: math.inf if len(text) > 1000 else 0.0, "cannot score a long answer"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_it_cannot_score_is_said(fault: str) -> None:
    function, message = FAULTS[fault]
    with pytest.raises(RewardError, match=message):
        await check_reward(FakeReward(function))


async def test_a_batch_that_fails_is_said() -> None:
    class Single(FakeReward):
        async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
            return (await super().score(prompt, completions))[:1]

    with pytest.raises(RewardError, match=r"cannot score two answers at once: .*1 scores for 2 candidates"):
        await check_reward(Single())


async def test_a_reward_without_system_messages_is_warned_about() -> None:
    def score(prompt: Prompt, text: str) -> float:
        if (prompt.messages or ())[0]["role"] == "system":
            raise ValueError("no system here")
        return 0.0

    with capture_logs() as logs:
        await check_reward(FakeReward(score))
    assert logs[0]["event"].startswith("the reward cannot score conversations with a system message")


async def test_one_that_hangs_is_late() -> None:
    with pytest.raises(RewardError, match=r"did not score within 0\.01 s"):
        await check_reward(FakeReward(delay=60), deadline=0.01)


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes.py").write_text(
        "def one(prompt, completions): return 0.5\n"
        "def rows(prompt, completions): return [[1.0] for _ in completions]\n"
        "def few(prompt, completions): return [1.0]\n"
        "def words(prompt, completions): return ['good' for _ in completions]\n"
        "def narrow(completions): return [1.0 for _ in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("shapes:one", "shapes:one returned float for 1 completions .*one number per completion"),
        ("shapes:rows", "shapes:rows returned list for 1 completions"),
        ("shapes:few", "two answers at once: .*returned 1 scores for 2"),
        ("shapes:words", "could not convert string to float"),
        ("shapes:narrow", "takes 1 positional argument but 2 were given"),
    ],
)
async def test_a_function_of_the_wrong_shape_is_told_its_shape(target: str, message: str) -> None:
    reward = build_reward(RewardSpec(kind="python", target=target))
    await reward.start()
    try:
        with pytest.raises(RewardError, match=message):
            await check_reward(reward)
    finally:
        await reward.stop()


# At the start of the service

DEAD: dict[str, tuple[Any, str]] = {
    "refuses": (Response("no such model", status_code=404), "answered 404"),
    "fails": (Response(status_code=500), "answered 500"),
    "answers something else": (JSONResponse({"score": 1.0}), "returned an invalid answer"),
    "answers for one": (JSONResponse({"scores": [1.0]}), "two answers at once"),
}


@pytest.mark.parametrize("fault", DEAD)
async def test_a_service_whose_reward_cannot_score_says_so_and_draws_nothing(fault: str, tmp_path: Path) -> None:
    answer, message = DEAD[fault]
    engine = WatchedEngine()
    with serving(answer) as server:
        reward = build_reward(RewardSpec(kind="http", target=server.url, attempts=1))
        async with running(settings_in(tmp_path), engine=engine, reward=reward, retry=0.01) as service:
            ready = await service.client.get("/health/ready")
            assert ready.status_code == 503
            assert "best-of-n cannot answer yet: reward http cannot score" in ready.json()["reason"]
            assert message in ready.json()["reason"]
            for model in ("bonbon", "base"):
                refused = await service.ask(model)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
                assert refused.json()["error"]["message"] == "the reward cannot score yet: see /health/ready"
            server.answers[:] = [lengths]
            await until(lambda: service.state.startup.failure is None)
            assert (await service.client.get("/health/ready")).status_code == 200
            assert not (await service.ask()).json()["bonbon"]["degraded"]


async def test_a_champion_that_answers_with_one_draw_does_not_wait_for_the_reward(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        champion = (await service.promoted(1)).name
        await service.state.swapper.converge()
    failing = FakeReward(lambda prompt, text: math.nan)
    async with running(settings_in(tmp_path), engine=WatchedEngine(), reward=failing) as service:
        assert (await service.client.get("/health/ready")).status_code == 200
        answered = await service.ask()
        assert answered.json()["bonbon"]["version"] == champion
        await service.state.registry.rollback(actor="test")
        await service.state.swapper.converge()
        assert service.state.router.champion == BASE
        assert (await service.client.get("/health/ready")).status_code == 503

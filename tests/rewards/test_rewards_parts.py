"""Tests rewards that need neither a model nor a network, and how kinds of rewards are found."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from bonbon.best_of_n import BestOfN
from bonbon.engines.engine import Sampling
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import RewardError, UserError
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.rewards.fake_reward import FakeReward
from bonbon.rewards.python_reward import PythonReward, load
from bonbon.rewards.weighted import WeightedReward
from bonbon.settings import RewardSpec

PROMPT = Prompt.user("Where is my order?")


def spec(value: Any) -> RewardSpec:
    return RewardSpec.model_validate(value)


async def score(value: Any, completions: list[str]) -> list[float]:
    reward = build_reward(spec(value))
    await reward.start()
    try:
        return await reward.score(PROMPT, completions)
    finally:
        await reward.stop()


# Length


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({}, [0, -2, -4]),
        ({"target": "2"}, [0, 0, -2]),
        ({"target": 2, "penalise": "both", "scale": 4}, [-0.5, 0, -0.5]),
        ({"unit": "chars", "target": 5, "scale": 2}, [0, -2, -5]),
    ],
)
async def test_length(options: dict[str, Any], scores: list[float]) -> None:
    assert await score({"kind": "length"} | options, ["", "two words", "it is four word"]) == scores


def test_length_versions_differ() -> None:
    versions = {build_reward(spec(f"length:{target}")).version for target in (1, 2, 3)}
    assert len(versions) == 3
    with pytest.raises(UserError, match="unit = 'tokens'"):
        build_reward(spec({"kind": "length", "unit": "tokens"}))


# Weighted


async def test_weighted_sum() -> None:
    parts = [{"weight": 2, "reward": "length:0"}, {"weight": -0.5, "reward": {"kind": "length", "unit": "chars"}}]
    assert await score({"kind": "weighted", "parts": parts}, ["a bc", "d"]) == [-4 + 2, -2 + 0.5]


async def test_weighted_runs_parts_at_once_and_any_failure_is_its_own() -> None:
    slow, failing = FakeReward(delay=5), FakeReward()
    failing.failure = "out of order"
    with pytest.raises(RewardError, match="out of order"):
        await WeightedReward([(1, slow), (1, failing)]).score(PROMPT, ["a"])
    assert slow.calls == [("a",)]


async def test_weighted_name_and_version_follow_its_parts() -> None:
    def weighted(weight: float, target: int) -> Any:
        parts = [{"weight": weight, "reward": f"length:{target}"}, {"weight": 1, "reward": {"kind": "fake"}}]
        return build_reward(spec({"kind": "weighted", "parts": parts}))

    assert weighted(1, 2).name == "weighted(length, fake)"
    assert weighted(1, 2).version == weighted(1, 2).version
    assert len({weighted(1, 2).version, weighted(2, 2).version, weighted(1, 3).version}) == 3


async def test_weighted_stops_what_started_when_a_part_cannot_start() -> None:
    class Refuses(FakeReward):
        async def start(self) -> None:
            raise UserError("no such model")

    other = FakeReward()
    other.calls.append(("before",))
    with pytest.raises(UserError, match="no such model"):
        await WeightedReward([(1, other), (1, Refuses())]).start()
    assert other.calls == []


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "parts = "),
        ([{"weight": 1}], r"parts\.0\.reward is required"),
        ([{"weight": float("nan"), "reward": "length:1"}], r"parts\.0\.weight = nan"),
        ([{"weight": 1, "reward": "length:-1"}], "reward length: target = '-1'"),
        ([{"weight": 1, "reward": {"kind": "nope"}}], "'nope' is unknown"),
    ],
)
def test_weighted_bad_options(parts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_reward(spec({"kind": "weighted", "parts": parts}))


# Python


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates `my_scores.py` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)
    path = tmp_path / "my_scores.py"
    path.write_text(
        dedent("""
            import threading

            def length(prompt, completions):
                assert threading.current_thread() is not threading.main_thread()
                return [len(text) for text in completions]

            async def question(prompt, completions):
                return [len(prompt.messages[0]["content"])] * len(completions)

            class Later:
                async def __call__(self, prompt, completions):
                    return (0.5 for _ in completions)

            def wrong(prompt, completions):
                return ["good"]

            later = Later()
            number = 3
        """)
    )
    return path


@pytest.mark.parametrize(("function", "scores"), [("length", [1, 2]), ("question", [18, 18]), ("later", [0.5, 0.5])])
async def test_python_callables(module: Path, function: str, scores: list[float]) -> None:
    assert await score(f"python:my_scores:{function}", ["a", "bb"]) == scores


@pytest.mark.parametrize("module", ["service.scores", "trainer", "bonbon.rewards.mine"])
async def test_a_users_module_may_have_the_name_of_a_package_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("def length(prompt, completions):\n    return [len(text) for text in completions]\n")
    assert await score(f"python:{module}:length", ["a", "bb"]) == [1, 2]
    assert load("bonbon.rewards:build_reward").__name__ == "build_reward"


def test_python_version_is_the_source(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build_reward(spec("python:my_scores:length")).version
    assert before == build_reward(spec("python:my_scores:length")).version
    assert before != build_reward(spec("python:my_scores:question")).version
    module.write_text(module.read_text() + "\n# changed\n")
    assert before != build_reward(spec("python:my_scores:length")).version
    assert build_reward(spec({"kind": "python", "target": "my_scores:length", "version": "3"})).version == "3"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_scores", "target = 'my_scores'"),
        ("my_scores:nothing", "'my_scores:nothing' cannot be loaded: .*nothing"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("my_scores:number", "is int, which cannot be called"),
    ],
)
def test_python_bad_targets(module: Path, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_reward(spec({"kind": "python", "target": target}))


async def test_python_failures_degrade(module: Path) -> None:
    engine = FakeEngine()
    await engine.start()
    reward = build_reward(spec("python:my_scores:wrong"))
    await reward.start()
    answer = await BestOfN(engine, reward)(PROMPT, 4, sampling=Sampling(max_tokens=8, seed=1))
    await reward.stop()
    assert answer.group.degraded == (
        "my_scores:wrong returned list for 4 completions (could not convert string to float: 'good'); it must return "
        "one number per completion"
    )


async def test_python_must_be_started() -> None:
    with pytest.raises(RewardError, match="not started"):
        await PythonReward(lambda prompt, completions: [0.0], version="1").score(PROMPT, ["a"])


# Discovery


def distribution(directory: Path, name: str, entry: str) -> None:
    """Creates an installed package that provides a reward, as pip would."""
    (directory / f"{name}.py").write_text(
        "from bonbon.rewards.fake_reward import FakeReward\n\n\n"
        "def build(options):\n"
        "    return FakeReward(lambda prompt, text: float(options['target']) * len(text))\n"
    )
    metadata = directory / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[bonbon.rewards]\n{entry}\n")


async def test_a_third_party_reward_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "acme_rewards", "acme = acme_rewards:build")
    monkeypatch.syspath_prepend(tmp_path)
    assert await score("acme:2", ["abc"]) == [6]


def test_a_broken_third_party_reward_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "broken_rewards", "broken = broken_rewards:no_such_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'broken' \(broken_rewards:no_such_name\) cannot be loaded"):
        build_reward(spec("broken:2"))


def test_a_name_claimed_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "greedy_rewards", "length = greedy_rewards:build")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"several packages, bonbon\.rewards\.length:build, greedy_rewards:build"):
        build_reward(spec("length:2"))


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"'magic' is unknown; known kinds: classifier, fake, http, judge, length, pairw"
    ):
        build_reward(spec("magic:1"))


@pytest.mark.parametrize(
    ("shorthand", "kind", "target"),
    [
        ("https://scores.example/v1", "http", "https://scores.example/v1"),
        (
            "OpenAssistant/reward-model-deberta-v3-large-v2",
            "classifier",
            "OpenAssistant/reward-model-deberta-v3-large-v2",
        ),
        ("./models/reward", "classifier", "./models/reward"),
        ("python:package.module:callable", "python", "package.module:callable"),
        ("length:120", "length", "120"),
    ],
)
def test_shorthand(shorthand: str, kind: str, target: str) -> None:
    assert (spec(shorthand).kind, spec(shorthand).target) == (kind, target)


def test_building_a_reward_loads_no_torch() -> None:
    code = (
        "import sys; from bonbon.rewards import build_reward; from bonbon.settings import RewardSpec as S\n"
        "[build_reward(S.model_validate(s)) for s in ('classifier:m', 'pairwise:m', 'http://h.example/', 'length:3')]\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

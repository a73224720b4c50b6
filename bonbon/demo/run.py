"""Runs the whole loop on real components: best-of-n over HTTP, pair log, training, gate, swap under traffic, fewer
draws.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httpx2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bonbon.demo.demo_figures import Figures, Yardstick
from bonbon.demo.results_table import figures_table, print_gate, sample_panels
from bonbon.demo.service_process import ServiceProcess
from bonbon.demo.tiny_models import TinyModels, tiny_models
from bonbon.demo.traffic import Reply, SwapTraffic, Traffic
from bonbon.demo.world import requests as make_requests
from bonbon.errors import BonbonError
from bonbon.rewards import build_reward
from bonbon.settings import RewardSpec
from bonbon.theory import best_of_n_kl

if TYPE_CHECKING:
    from bonbon.rewards.reward import Reward

ALIAS = "bonbon"
ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "embedded": {},
    "remote": {},
    # Uses little memory, because the evaluation's engine runs beside the service's, and no compilation, which takes
    # minutes.
    "vllm": {"kv_cache_memory_bytes": 2**28, "max_num_seqs": 256, "enforce_eager": True},
}
YARDSTICK_SEED, BASE_SEED, BEFORE_SEED, TRAFFIC_SEED, AFTER_SEED = (i * 1_000_000 for i in range(1, 6))
AFTER_K_SEED = 500_000
SWAP_ANSWERS = 6
"""Answers that the demo waits for before it promotes a version, and answers of that version that it waits for
afterwards.
"""
SWAP_SECONDS, SWAP_POLL = 60.0, 0.05
"""Maximum seconds to wait for them, and seconds between two checks of their number."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The demo's sizes.

    With `full_training`, rounds train and audit with the settings' defaults, further requests show what a promoted
    version saves, a refused round is followed by another, and no round follows once one draw answers.
    """

    data_dir: Path
    seed: int = 0
    rounds: int = 1
    full_training: bool = False
    n: int = 8
    traffic: int = 1000
    measured_requests: int = 150
    answers: int = 3
    streams: int = 25
    port: int = 0
    engine: str = "embedded"
    urls: tuple[str, ...] = ()

    @property
    def groups_needed(self) -> int:
        """The number of clean groups that start a round; below the number of requests, because some groups are tied or
        held out.
        """
        return int(self.traffic * 0.8)


@dataclass(slots=True)
class Results:
    """All figures of the demo, as written to its JSON file.

    `before` holds the figures of best-of-n of the base, `one_draw` those of one draw of the promoted version, and
    `after` those of as many draws as the gate has chosen.
    """

    n: int
    base: Figures | None = None
    before: Figures | None = None
    one_draw: Figures | None = None
    after: Figures | None = None
    gate: dict[str, Any] = field(default_factory=lambda: {"passed": False, "reasons": [], "k": None, "saved": None})
    swap: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the duration of the block to a stage's time."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start


class Demo:
    """Runs the loop and stores its measurements in `results`. The service is running when `run` returns."""

    def __init__(self, plan: DemoOptions, console: Console) -> None:
        self.plan, self.console = plan, console
        self.results = Results(plan.n)
        self.samples: dict[str, list[Reply]] = {}
        self.service: ServiceProcess | None = None

    async def run(self) -> bool:
        """Returns whether the gate passed in every round or, with full training, in any of them."""
        from openai import AsyncOpenAI

        plan, results = self.plan, self.results
        start = perf_counter()
        with results.timed("models"):
            models = tiny_models()
            reward_spec = RewardSpec(kind="classifier", target=str(models.reward))
            reward = build_reward(reward_spec)
            await reward.start()
        environment = self._environment(models, reward_spec)
        self.service = ServiceProcess(environment, plan.data_dir / "service.log", plan.port)
        self._announce(f"starting the service (log: {self.service.log})")
        await self.service.start()
        self._announce(f"service ready at {self.service.url}")
        async with AsyncOpenAI(base_url=f"{self.service.url}/v1", api_key="none", timeout=120.0) as client:
            traffic = Traffic(client)
            with results.timed("measure"):
                yardstick = await self._measure_before(traffic, reward)
            for round_number in range(1, plan.rounds + 1):
                passed = await self._round(round_number, traffic, yardstick, reward, environment)
                if results.gate["k"] == 1 if plan.full_training else not passed:
                    break
            if plan.full_training and results.after is not None:
                await self._answer(len(results.rounds) + 1, traffic)
        await reward.stop()
        results.seconds["total"] = perf_counter() - start
        self._print()
        return results.after is not None if plan.full_training else bool(results.gate["passed"])

    def _environment(self, models: TinyModels, reward: RewardSpec) -> dict[str, str]:
        plan = self.plan
        fleet = {"urls": plan.urls} if plan.urls else {}
        return {
            "BONBON_MODEL": str(models.policy),
            "BONBON_REWARD": reward.model_dump_json(),
            "BONBON_HELD_OUT_REWARD": RewardSpec(
                kind="classifier", target=str(models.held_out_reward)
            ).model_dump_json(),
            "BONBON_N": str(plan.n),
            "BONBON_ENGINE": plan.engine,
            "BONBON_ENGINE_OPTIONS": json.dumps(ENGINE_OPTIONS[plan.engine] | fleet),
            "BONBON_DATA_DIR": str(plan.data_dir),
            "BONBON_SERVICE__AUDIT_QUEUE": str(max(256, plan.traffic)),
            "BONBON_LOOP__MIN_GROUPS": str(plan.groups_needed),
            "BONBON_LOOP__AUTO_PROMOTE": "false",
            "BONBON_TRAIN__SEED": str(plan.seed),
        } | ({} if plan.full_training else self._short_training())

    def _short_training(self) -> dict[str, str]:
        return {
            # A second round trains on the champion's own groups, which come from audits.
            "BONBON_SERVICE__AUDIT_FRACTION": "1" if self.plan.rounds > 1 else "0.02",
            # A learning rate that suits this model saves the probe. Learning from its own draws would lower k, but
            # takes more draws than a demo has time for.
            "BONBON_TRAIN__LEARNING_RATE": "2e-3",
            "BONBON_TRAIN__REFINE": "off",
            "BONBON_TRAIN__VALIDATION_DRAWS": "192",
            "BONBON_TRAIN__MICRO_BATCH_SIZE": "16",
        }

    async def _measure_before(self, traffic: Traffic, reward: "Reward") -> Yardstick:
        plan, seed = self.plan, self.plan.seed
        requests = make_requests(BASE_SEED + seed, plan.measured_requests)
        with self._progress("measuring the base", plan.measured_requests * (1 + plan.answers)) as done:
            yardstick = await Yardstick.draw(traffic, reward, requests, plan.n, seed=YARDSTICK_SEED + seed, done=done)
            self.results.base, self.samples["base"] = await self._measure(
                yardstick, traffic, reward, "base", 1, BASE_SEED, done, kl=0.0, kl_estimator="identity"
            )
        with self._progress(f"measuring best-of-{plan.n}", plan.measured_requests * plan.answers) as done:
            self.results.before, self.samples[f"best of {plan.n}"] = await self._measure(
                yardstick,
                traffic,
                reward,
                ALIAS,
                plan.n,
                BEFORE_SEED,
                done,
                kl=best_of_n_kl(plan.n),
                kl_estimator="log n - (n-1)/n",
                is_best_of_n=True,
            )
        return yardstick

    async def _measure(
        self,
        yardstick: Yardstick,
        traffic: Traffic,
        reward: "Reward",
        model: str,
        best_of: int,
        seed: int,
        done: Any,
        *,
        kl: float | None = None,
        kl_estimator: str = "",
        is_best_of_n: bool = False,
    ) -> tuple[Figures, list[Reply]]:
        return await yardstick.measure(
            traffic,
            reward,
            model=model,
            best_of=best_of,
            kl=kl,
            kl_estimator=kl_estimator,
            seed=seed + self.plan.seed,
            answers=self.plan.answers,
            streams=self.plan.streams,
            done=done,
            is_best_of_n=is_best_of_n,
        )

    async def _round(
        self, number: int, traffic: Traffic, yardstick: Yardstick, reward: "Reward", environment: dict[str, str]
    ) -> bool:
        plan, results = self.plan, self.results
        requests = await self._answer(number, traffic)
        version = await self._train(environment)
        results.gate = _gate(version["verdict"])
        print_gate(self.console, results.gate, plan.n)
        if not results.gate["passed"]:
            results.rounds.append({"version": version["name"], "gate": results.gate})
            return False
        swap = await self._swap(version["name"], traffic, requests)
        results.swap = {
            "requests": results.swap.get("requests", 0) + swap.requests,
            "failed": results.swap.get("failed", 0) + swap.failed,
            "errors": (results.swap.get("errors", []) + swap.errors)[:10],
        }
        await self._measure_after(number, version, traffic, yardstick, reward)
        assert results.one_draw is not None
        assert results.after is not None
        results.rounds.append(
            {
                "version": version["name"],
                "gate": results.gate,
                "one_draw": asdict(results.one_draw),
                "after": asdict(results.after),
                "swap": asdict(swap),
            }
        )
        return True

    async def _answer(self, number: int, traffic: Traffic) -> list[str]:
        """Sends the requests that round `number` learns from to the champion, and returns them."""
        plan, rounds = self.plan, self.results.rounds
        requests = make_requests(TRAFFIC_SEED * number + plan.seed, plan.traffic)
        with (
            self.results.timed("traffic"),
            self._progress(f"round {number}: answering requests", len(requests)) as done,
        ):
            await traffic.ask_all(requests, model=ALIAS, seed=TRAFFIC_SEED * number + plan.seed, done=done)
            if rounds:
                await self._wait_for_audits()
                live = await self._admin("GET", "/admin/win-rate")
                rounds[-1]["live"] = {name: live[name] for name in ("k", "audit_fraction", "savings")}
        return requests

    async def _measure_after(
        self, number: int, version: dict[str, Any], traffic: Traffic, yardstick: Yardstick, reward: "Reward"
    ) -> None:
        """Measures one draw of the promoted version and, if the gate chose more, the best of that many draws."""
        plan, results, evaluation = self.plan, self.results, version["evaluation"]
        k, seed = results.gate["k"], AFTER_SEED * number
        count = plan.measured_requests * plan.answers * (1 if k == 1 else 2)
        with results.timed("measure"), self._progress(f"measuring {version['name']}", count) as done:
            results.one_draw, self.samples[f"one draw, round {number}"] = await self._measure(
                yardstick,
                traffic,
                reward,
                ALIAS,
                1,
                seed,
                done,
                kl=evaluation["kl"]["value"],
                kl_estimator=str(evaluation["kl_estimator"]),
            )
            results.after = results.one_draw
            if k > 1:
                results.after, self.samples[f"best of {k}, round {number}"] = await self._measure(
                    yardstick, traffic, reward, ALIAS, k, seed + AFTER_K_SEED, done
                )

    async def _wait_for_audits(self, quiet_seconds: float = 3.0) -> None:
        """Waits until no more groups of audits arrive."""
        from bonbon.pairs.reading.reader import count_clean
        from bonbon.store.database import open_database

        champion = await self._admin("GET", "/admin/aliases")
        before = -1
        while True:
            async with open_database(f"sqlite+aiosqlite:///{self.plan.data_dir.absolute() / 'bonbon.db'}") as database:
                count = await count_clean(database, champion["aliases"]["champion"])
            if count == before:
                return
            before = count
            await asyncio.sleep(quiet_seconds)

    async def _train(self, environment: dict[str, str]) -> dict[str, Any]:
        """Runs one round of `bonbon loop` in a separate process and returns the version that it registered."""
        known = {version["name"] for version in (await self._admin("GET", "/admin/versions"))["versions"]}
        with self.results.timed("train_and_evaluate"):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "bonbon", "loop", "--now", env={**os.environ, **environment}
            )
            status = await process.wait()
        versions = (await self._admin("GET", "/admin/versions"))["versions"]
        new = [version for version in versions if version["name"] not in known]
        if not new:
            raise BonbonError(f"the training round registered no version (exit status {status}); see its output above")
        version: dict[str, Any] = new[-1]
        for stage, seconds in version["training"].get("seconds", {}).items():
            self.results.seconds[stage] = self.results.seconds.get(stage, 0.0) + seconds
        return version

    async def _swap(self, version: str, traffic: Traffic, requests: list[str]) -> SwapTraffic:
        """Promotes the version while requests are sent, some before and some after."""
        stop, result = asyncio.Event(), SwapTraffic()
        self._announce(f"promoting {version} while traffic goes on")
        sending = asyncio.create_task(traffic.until(stop, requests, model=ALIAS, result=result))
        await _seen(sending, lambda: sum(result.versions.values()), seconds=1.0)
        await self._admin("POST", "/admin/promote", {"version": version})
        await _seen(sending, lambda: result.versions.get(version, 0), seconds=2.0)
        stop.set()
        await sending
        served = ", ".join(f"{name}: {count}" for name, count in sorted(result.versions.items()))
        self._announce(f"swapped under {result.requests} requests, {result.failed} failed ({served})")
        return result

    async def _admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        assert self.service is not None
        async with httpx2.AsyncClient(base_url=self.service.url, timeout=120.0) as client:
            response = await client.request(method, path, json=body)
        if response.status_code >= 400:
            raise BonbonError(f"{method} {path}: {response.status_code} {response.text[:500]}")
        answer: dict[str, Any] = response.json()
        return answer

    @contextmanager
    def _progress(self, title: str, total: int) -> Iterator[Any]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)

    def _announce(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def _print(self) -> None:
        results = self.results
        columns = {"base, one draw": results.base, f"best of {results.n}": results.before}
        columns["distilled, one draw"] = results.one_draw
        if results.gate["passed"] and results.gate["k"] > 1:
            columns[f"distilled, best of {results.gate['k']}"] = results.after
        self.console.print(sample_panels(self.samples))
        self.console.print(figures_table({k: v for k, v in columns.items() if v is not None}, results.n))


async def _seen(sending: asyncio.Task[SwapTraffic], answers: Callable[[], int], *, seconds: float) -> None:
    """Waits `seconds`, and then until there are `SWAP_ANSWERS` answers, `SWAP_SECONDS` have passed or sending has
    ended.
    """
    await asyncio.sleep(seconds)
    for _ in range(int(SWAP_SECONDS / SWAP_POLL)):
        if answers() >= SWAP_ANSWERS or sending.done():
            return
        await asyncio.sleep(SWAP_POLL)


def _gate(verdict: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the gate's verdict with its reasons as texts."""
    if verdict is None:
        return {"passed": False, "reasons": ["no verdict: see the training log"], "k": None, "saved": None}
    reasons = [reason["text"] for reason in verdict["reasons"]]
    return {"passed": verdict["passed"], "reasons": reasons, "k": verdict["k"], "saved": verdict["saved"]}

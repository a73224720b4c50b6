"""Real vLLM servers, each a process group of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from bonbon.demo.service_process import free_port

FLEET = ("--enable-lora", "--max-lora-rank", "16", "--max-loras", "4", "--logprobs-mode", "processed_logprobs")
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
POOLING = ("--runner", "pooling")
# vLLM 0.32 dies on the CPU when it reads a prompt with a seed in chunks.
ON_CPU = ("--no-enable-chunked-prefill",)


class VllmServer:
    """One server on a port that it keeps.

    Args:
        model: its directory.
        log: where its output goes.
        options: of its command line.
    """

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        fixed = ["--model", str(model), "--served-model-name", model.name, "--dtype", "float32", "--enforce-eager"]
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            *fixed,
            *address,
            *ON_CPU,
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self, seconds: float = 400) -> None:
        """Until it is ready to draw."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self._process is not None
            assert self._process.poll() is None, f"vLLM ended: {self.log.read_text(errors='replace')[-3000:]}"
            try:
                if httpx2.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # not listening yet
            time.sleep(0.5)
        raise AssertionError(f"vLLM was not ready in {seconds} s: {self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """SIGKILL to everything it has started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def adapters(self) -> set[str]:
        """Names of the adapters that are loaded."""
        cards = httpx2.get(f"{self.url}/v1/models", timeout=30).json()["data"]
        return {card["id"] for card in cards if card.get("parent")}

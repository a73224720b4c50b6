"""Has vLLM's processes write their log as bonbon writes its own with `--json-logs`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vllm.config.logging import LoggingConfig

from bonbon.observability.logs import writes_json


@contextmanager
def logging_arguments() -> Iterator[dict[str, Any]]:
    """Yields the arguments of AsyncEngineArgs about output, for an engine that starts in the block.

    Yields no arguments unless log lines are JSON objects. vLLM's processes read the file that they name when they
    start.
    """
    if not writes_json():
        yield {}
        return
    with TemporaryDirectory(prefix="bonbon-vllm-") as directory:
        path = Path(directory) / "logging.json"
        path.write_text(json.dumps(_dict_config(LoggingConfig().log_level)))
        yield {"logging_config": LoggingConfig(pylogging_config_file=str(path)), "use_tqdm_on_load": False}


def _dict_config(level: str) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "bonbon.observability.logs.json_formatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {"vllm": {"level": level, "handlers": ["stderr"], "propagate": False}},
    }

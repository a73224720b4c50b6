"""Configures one log for every command and its libraries. No line contains the value of a local variable."""

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from bonbon.observability.tracebacks import format_traceback
from bonbon.observability.tracing import current_ids


def configure_logs(*, json: bool = False, level: int = logging.INFO, libraries: int = logging.INFO) -> None:
    """Writes every log line to standard error, as JSON objects or for people to read.

    Args:
        level: The level of bonbon's own lines.
        libraries: The level of all other lines.
    """
    structlog.configure(
        processors=[*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_formatter() if json else _formatter(_console()))
    if json:
        # A progress bar is not a log line. Processes that this one starts draw none either.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    logging.captureWarnings(json)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(libraries)
    for own in ("bonbon", "service", "trainer"):
        logging.getLogger(own).setLevel(level)
    # Below warnings, these report each request and each migration step.
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(max(libraries, logging.WARNING))


def json_formatter() -> logging.Formatter:
    """Returns a formatter that writes each record as a JSON object."""
    return _formatter(structlog.processors.ExceptionRenderer(_traceback), structlog.processors.JSONRenderer())


def writes_json() -> bool:
    """Returns whether log lines are JSON objects."""
    formatters = [handler.formatter for handler in logging.getLogger().handlers]
    return any(
        isinstance(formatter, structlog.stdlib.ProcessorFormatter)
        and isinstance(formatter.processors[-1], structlog.processors.JSONRenderer)
        for formatter in formatters
    )


def _formatter(*renderer: Any) -> logging.Formatter:
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*SHARED, VLLM_PROCESS], processors=[remove_meta, *renderer]
    )


def _console() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.update(current_ids())
    return event


def _traceback(exc_info: Any) -> str:
    return format_traceback(exc_info[1])


def _write_traceback(stream: TextIO, exc_info: Any) -> None:
    stream.write("\n" + format_traceback(exc_info[1]))


SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    _add_trace,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
"""What every line gets, bonbon's and those of libraries."""

VLLM_PROCESS = structlog.stdlib.ExtraAdder(allow=("vllm_process_name",))
"""Adds the name of the vLLM process that wrote the line."""

"""Engines: what draws candidates."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from bonbon.engines.engine import Engine
from bonbon.errors import UserError
from bonbon.settings import Settings
from bonbon.shown_values import shown_input

__all__ = ["Engine", "build_engine"]

READERS = ("embedded", "vllm")
"""The engines that read the model's files themselves."""


def build_engine(settings: Settings, *, base: str) -> Engine:
    """The engine that `settings` name, not started, serving `base`.

    Raises:
        UserError: the engine, an option of it, or the model is unknown, or the engine cannot follow a setting.
    """
    if settings.engine not in FACTORIES:
        raise UserError(
            f"engine = {settings.engine!r} is not known; choose one of {', '.join(sorted(FACTORIES))}", param="engine"
        )
    if settings.end_tokens is not None and settings.engine not in READERS:
        raise UserError(
            f"end_tokens is for the engines {' and '.join(READERS)}, not for {settings.engine}: leave it out, and "
            "start the fleet's servers with --override-generation-config '{\"eos_token_id\": [...]}'",
            param="end_tokens",
        )
    try:
        return FACTORIES[settings.engine](settings, base)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise UserError(f"engine_options of {settings.engine}: {problems}", param="engine_options") from error


def _problem(item: Any) -> str:
    """What is wrong with an option. Values that may be or hold a secret are not shown."""
    where = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{where}: no option has that name"
    return f"{where}{shown_input(item)}: {item['msg']}"


def _embedded(settings: Settings, base: str) -> Engine:
    from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
    from bonbon.engines.embedded.embedded_options import EmbeddedOptions
    from bonbon.model_files import resolve_model

    options = EmbeddedOptions(**settings.engine_options)
    model = resolve_model(settings.model, settings.revision)
    return EmbeddedEngine(base, model, options, end_tokens=settings.end_tokens)


def _vllm(settings: Settings, base: str) -> Engine:
    from bonbon.engines.vllm.vllm_engine import build_vllm
    from bonbon.engines.vllm.vllm_options import VllmOptions
    from bonbon.model_files import resolve_model

    options = VllmOptions(**settings.engine_options)
    model = resolve_model(settings.model, settings.revision, extra="vllm")
    return build_vllm(base, model, options, end_tokens=settings.end_tokens)


def _fake(settings: Settings, base: str) -> Engine:
    from bonbon.engines.fake_engine import FakeEngine

    try:
        return FakeEngine(base, **settings.engine_options)
    except TypeError as error:
        raise UserError(f"engine_options of fake: {error}", param="engine_options") from error


def _remote(settings: Settings, base: str) -> Engine:
    from bonbon.engines.remote.remote_engine import RemoteEngine
    from bonbon.engines.remote.remote_options import RemoteOptions

    return RemoteEngine(base, RemoteOptions(**settings.engine_options))


FACTORIES: dict[str, Callable[[Settings, str], Engine]] = {
    "embedded": _embedded,
    "fake": _fake,
    "remote": _remote,
    "vllm": _vllm,
}

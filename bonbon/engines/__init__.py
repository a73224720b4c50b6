"""Engines sample candidates from a language model."""

from collections.abc import Callable

from pydantic import ValidationError

from bonbon.engines.engine import Engine
from bonbon.errors import UserError
from bonbon.settings import Settings
from bonbon.shown_values import describe_problems

__all__ = ["Engine", "build_engine"]

READERS = ("embedded", "vllm")
"""The engines that read the model's files themselves."""


def build_engine(settings: Settings, *, base: str) -> Engine:
    """Returns the engine that `settings` select, serving `base`; it is not started.

    Raises:
        UserError: The engine, one of its options, or the model is unknown, or the engine does not support a setting.
    """
    if settings.engine not in FACTORIES:
        raise UserError(
            f"engine = {settings.engine!r} is unknown; choose one of {', '.join(sorted(FACTORIES))}", param="engine"
        )
    if settings.end_tokens is not None and settings.engine not in READERS:
        raise UserError(
            f"end_tokens applies to the engines {' and '.join(READERS)}, not to {settings.engine}: remove it, and "
            "start the fleet's servers with --override-generation-config '{\"eos_token_id\": [...]}'",
            param="end_tokens",
        )
    try:
        return FACTORIES[settings.engine](settings, base)
    except ValidationError as error:
        problems = describe_problems(error, unknown="there is no such option")
        raise UserError(f"engine_options of {settings.engine}: {problems}", param="engine_options") from error


def _embedded(settings: Settings, base: str) -> Engine:
    from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
    from bonbon.engines.embedded.embedded_options import EmbeddedOptions
    from bonbon.files.model_files import resolve_model

    options = EmbeddedOptions(**settings.engine_options)
    model = resolve_model(settings.model, settings.revision)
    return EmbeddedEngine(base, model, options, end_tokens=settings.end_tokens)


def _vllm(settings: Settings, base: str) -> Engine:
    from bonbon.engines.vllm.vllm_engine import VllmEngine, check_options
    from bonbon.engines.vllm.vllm_options import VllmOptions
    from bonbon.files.model_files import resolve_model

    options = VllmOptions(**settings.engine_options)
    check_options(options)  # before a model of gigabytes is downloaded
    model = resolve_model(settings.model, settings.revision, extra="vllm")
    return VllmEngine(base, model, options, end_tokens=settings.end_tokens)


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

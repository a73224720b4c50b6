"""Checks what the service needs, one thing after the other, without starting it."""

import asyncio
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bonbon.engines import build_engine
from bonbon.engines.golden_prompts import check_base
from bonbon.errors import BonbonError, UserError
from bonbon.extras import install, need
from bonbon.files.model_files import is_hub_name, resolve_model, served_name
from bonbon.keys.key_store import all_keys
from bonbon.rewards import build_reward
from bonbon.rewards.reward_check import check_reward
from bonbon.settings import RewardSpec, ServiceSettings, Settings
from bonbon.store.database import open_database
from service.app import base_name
from service.auth.keyring import needs_key
from service.auth.local_requests import is_loopback

LEAST_FREE = 5 * 2**30
"""The free space on the data directory's disk, in bytes, below which the check warns."""
READS_MODEL = {"embedded": ("torch", "transformers", "peft"), "vllm": ("vllm", "transformers")}
"""The engines that read the model's files on this machine, and what each needs; the extras that install them have the
same names."""


class State(StrEnum):
    """The outcome of a check. Only a problem keeps the service from answering."""

    GOOD = "good"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check. The text of a warning or a problem says what to do about it."""

    check: str
    state: State
    text: str


async def examine(settings: Settings, *, draw: bool = False) -> AsyncIterator[Finding]:
    """Yields each finding as soon as it is known.

    Args:
        draw: also start the engine and draw a few tokens, which loads the model.
    """
    yield await asyncio.to_thread(_model, settings)
    yield await asyncio.to_thread(_device, settings)
    yield await _reward("reward", settings.reward)
    yield await _reward("held_out_reward", settings.held_out_reward)
    database, made = await _database(settings)
    yield database
    yield _disk(settings.data_dir.absolute())
    yield _port(settings.service.host, settings.service.port)
    yield _keys(settings.service, made)
    if draw:
        yield await _engine(settings)


def _model(settings: Settings) -> Finding:
    if settings.engine not in READS_MODEL:
        return Finding("model", State.GOOD, f"the engine {settings.engine!r} reads no model's files on this machine")
    try:
        need(f"the engine {settings.engine!r}", settings.engine, *READS_MODEL[settings.engine])
    except UserError as error:
        return Finding("model", State.PROBLEM, str(error))
    if is_hub_name(settings.model) and not Path(settings.model).is_dir():
        return Finding(
            "model", State.WARNING, f"{settings.model} is not a directory here: it is downloaded from the model hub"
        )
    try:
        from bonbon.engines.text.tokenizer import load_tokenizer

        directory = resolve_model(settings.model, settings.revision)
        tokenizer = load_tokenizer(directory)
    except BonbonError as error:
        return Finding("model", State.PROBLEM, str(error))
    gigabytes = sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 1e9
    said = f"{directory} is served as {served_name(settings.model)!r}, with {gigabytes:.2f} GB of weights"
    if tokenizer.chat_template is None:
        return Finding(
            "model",
            State.WARNING,
            f"{said}. Its tokenizer has no chat template, so that only /v1/completions is answered: choose a chat "
            "model, or save a chat_template.jinja beside the weights",
        )
    return Finding("model", State.GOOD, said)


def _device(settings: Settings) -> Finding:
    if settings.engine not in READS_MODEL:
        return Finding("device", State.GOOD, f"the engine {settings.engine!r} needs no GPU on this machine")
    try:
        import torch
    except ModuleNotFoundError:
        return Finding("device", State.PROBLEM, f"torch is not installed: {install(settings.engine)}")
    if count := torch.cuda.device_count():
        properties = [torch.cuda.get_device_properties(number) for number in range(count)]
        return Finding(
            "device", State.GOOD, ", ".join(f"{one.name} ({one.total_memory / 1e9:.0f} GB)" for one in properties)
        )
    cores = len(os.sched_getaffinity(0))
    return Finding(
        "device",
        State.WARNING,
        f"torch {torch.__version__} sees no GPU: models are computed on {cores} CPU cores, which is fast enough for "
        "small ones only. On a machine with a GPU, install its driver and a build of torch for it",
    )


async def _reward(setting: str, spec: RewardSpec | None) -> Finding:
    if spec is None and setting == "reward":
        return Finding(
            setting,
            State.PROBLEM,
            "none is set, so that nothing ranks candidates: set BONBON_REWARD to a reward model's directory or hub "
            "name, a URL, or kind:target (docs/rewards.md)",
        )
    if spec is None:
        return Finding(
            setting,
            State.WARNING,
            "none is set, so that no evaluation can show whether a version has learnt the reward's errors; set "
            "BONBON_HELD_OUT_REWARD to another reward, which nothing is trained with",
        )
    try:
        reward = build_reward(spec)
        await reward.start()
        try:
            start = time.perf_counter()
            await check_reward(reward)
            seconds = time.perf_counter() - start
        finally:
            await reward.stop()
    except BonbonError as error:
        return Finding(setting, State.PROBLEM, f"{spec.kind}: {error}")
    return Finding(setting, State.GOOD, f"{reward.name} {reward.version} scored five dummy answers in {seconds:.2f} s")


async def _database(settings: Settings) -> tuple[Finding, int | None]:
    """What was found, and how many keys are in the database; None where it cannot be opened."""
    file = settings.data_dir.absolute() / "bonbon.db"
    if not settings.database_url and not file.exists():
        return Finding("database", State.GOOD, f"the service makes {file} when it starts"), 0
    try:
        async with open_database(settings.database, create=False, timeouts=settings.database_timeouts) as database:
            url = database.url.set(query={}).render_as_string(hide_password=True)
            made = len(await all_keys(database))
    except BonbonError as error:
        return Finding("database", State.PROBLEM, str(error)), None
    return Finding("database", State.GOOD, f"{url} answers, and its tables are this release's"), made


def _disk(data_dir: Path) -> Finding:
    existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "disk", State.PROBLEM, f"{existing} cannot be written to: change its owner, or set data_dir to another one"
        )
    free = shutil.disk_usage(existing).free
    said = f"{data_dir} has {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE:
        return Finding(
            "disk",
            State.WARNING,
            f"{said}: the log, training snapshots and versions grow there, and the service refuses requests when it is "
            "full. Make room, or set data_dir to a larger disk",
        )
    return Finding("disk", State.GOOD, said)


def _port(host: str, port: int) -> Finding:
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        return Finding(
            "port",
            State.PROBLEM,
            f"the service cannot listen to {host}:{port} ({error.strerror}): stop what listens there, which may be the "
            "service itself, or set service.port or service.host",
        )
    return Finding("port", State.GOOD, f"{host}:{port} is free")


def _keys(service: ServiceSettings, made: int | None) -> Finding:
    """What follows from the settings' keys and from `made` keys in the database; None: it cannot be opened."""
    if made is None:
        return Finding("keys", State.WARNING, "they are in the database, which cannot be opened")
    known = made + (service.api_key is not None) + (service.admin_key is not None)
    required = needs_key(service, has_keys=known > 0)
    if required and not known:
        return Finding(
            "keys",
            State.PROBLEM,
            f"requests to {service.host} need a key, and there is none: make one with `bonbon keys create NAME`",
        )
    if not required and not is_loopback(service.host):
        return Finding(
            "keys",
            State.WARNING,
            f"everybody who reaches {service.host} may use the service: set service.auth to 'auto' and make a key with "
            "`bonbon keys create NAME`",
        )
    if not required:
        return Finding("keys", State.GOOD, "requests from this machine need no key")
    return Finding("keys", State.GOOD, f"requests need a key; keys that were made: {known}")


async def _engine(settings: Settings) -> Finding:
    try:
        engine = await asyncio.to_thread(build_engine, settings, base=base_name(settings))
        start = time.perf_counter()
        try:
            await engine.start()
            started = time.perf_counter()
            await check_base(engine)
            seconds, context = time.perf_counter() - started, engine.context_length
        finally:
            await engine.stop()
    except BonbonError as error:
        return Finding("engine", State.PROBLEM, str(error))
    return Finding(
        "engine",
        State.GOOD,
        f"{settings.engine} started in {started - start:.1f} s and drew for the golden prompts in {seconds:.1f} s; "
        f"its context has {context} tokens",
    )

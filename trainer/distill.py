"""Distils a base model with a reward offline: the whole loop once, in one directory.

The output is a run directory (see `trainer.rounds`) with its own database, on which the service can be started.
"""

import asyncio
import fcntl
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import structlog
from sqlalchemy import select

from bonbon.best_of_n import BestOfN
from bonbon.concurrency.gather import gather_or_cancel
from bonbon.engines import build_engine
from bonbon.engines.engine import Sampling
from bonbon.errors import Conflict, PromptTooLong, RewardError, UserError
from bonbon.files.manifest import names_base
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.snapshot import Fractions, Split, split_of
from bonbon.progress import bar
from bonbon.prompt import Prompt
from bonbon.registry.version_records import Version
from bonbon.rewards import build_reward
from bonbon.rewards.reward_check import check_reward
from bonbon.rewards.scoring import OFFLINE_DEADLINE
from bonbon.settings import Settings
from bonbon.store.tables import groups
from trainer.context import RunContext
from trainer.drawing import MIN_VALIDATION_GROUPS, why_not_drawn
from trainer.result_files import read_json, write_json
from trainer.rounds import Round, stages
from trainer.run_directory import PLAN

log = structlog.get_logger(__name__)

TASK = "distill.json"
CONCURRENCY = 32
"""Prompts processed concurrently."""
OF_A_PROMPT = ("prompt", "messages")
"""Parameters named by an engine's error when it concerns a single prompt, and other prompts may still be read."""


@dataclass(frozen=True, slots=True)
class Task:
    """The parameters of the draws. The same parameters continue in the same directory; others are refused."""

    base: str
    base_digest: str
    reward: str
    prompts: str
    n: int
    max_tokens: int
    temperature: float
    seed: int


async def distill(context: RunContext, out: Path, prompts: Sequence[Prompt], sampling: Sampling) -> Version:
    """Draws and logs n scored candidates per prompt, then trains, evaluates, gates and registers a version in `out`.

    Finished work is not repeated, so an interrupted run continues where it stopped, and groups that are in the log are
    not drawn again. A version that passes the gate is promoted in the directory's own registry.

    Args:
        context: Its database and registry are in `out`.
        sampling: Sampling settings of the candidates. A prompt's seed follows from its seed and the prompt's position.

    Raises:
        UserError: There are too few readable prompts, `out` holds another task, or the base cannot be trained with
            these settings.
        Conflict: Another process works in `out`.
        RewardError, EngineError: Scoring or drawing failed; the logged groups are kept.
    """
    _refuse_impossible(prompts, context.settings)
    await context.check_training()
    with locked(out):
        await asyncio.to_thread(_claim, out, _task(context, prompts, sampling), context.base.directory)
        if not (out / PLAN).exists():
            await draw_groups(context, prompts, sampling)
            round_ = await Round.create(context, out, start=context.base.name)
        else:
            round_ = Round.open(context, out)
        for stage in stages(round_, promote=True):
            result = await stage()
        assert isinstance(result, Version)
        return result


async def draw_groups(context: RunContext, prompts: Sequence[Prompt], sampling: Sampling) -> int:
    """Logs a group for each prompt that has none, and returns how many were drawn. A group's id is its prompt's
    position.
    """
    async with context.database.read(bulk=True) as connection:
        done = set((await connection.execute(select(groups.c.id))).scalars())
    left = [(number, prompt) for number, prompt in enumerate(prompts) if _group_id(number) not in done]
    if not left:
        return 0
    settings, base = context.settings, context.base
    assert settings.reward is not None
    # In a thread, because vLLM takes seconds to import.
    engine = await asyncio.to_thread(build_engine, settings, base=base.name)
    reward = build_reward(settings.reward)
    pair_log = PairLog(context.database)
    waiting = iter(left)
    skipped, unreadable = 0, None

    async def draw_some() -> None:
        nonlocal skipped, unreadable
        for number, prompt in waiting:
            try:
                own = replace(sampling, seed=(sampling.seed or 0) + number)
                group = (await best_of_n(prompt, settings.n, sampling=own)).group
            except UserError as error:
                if not isinstance(error, PromptTooLong):
                    if error.param not in OF_A_PROMPT:
                        raise
                    unreadable = error
                log.warning("prompt skipped", number=number + 1, reason=str(error))
                skipped += 1
            else:
                if group.degraded is not None:
                    raise RewardError(f"prompt {number + 1}: {group.degraded}; the groups drawn so far are kept")
                await pair_log.append(replace(group, id=_group_id(number)))
            task.advance(1)

    async with BestOfN(engine, reward, deadline=OFFLINE_DEADLINE) as best_of_n:
        await check_reward(reward, deadline=OFFLINE_DEADLINE)
        await pair_log.start()
        try:
            title = f"drawing {settings.n} candidates per prompt"
            already = len(prompts) - len(left)
            with bar(title, len(prompts), done=already, show=context.progress, transient=False) as task:
                await gather_or_cancel(draw_some() for _ in range(CONCURRENCY))
        finally:
            await pair_log.stop()
    if unreadable is not None and skipped == len(prompts):
        raise unreadable
    if skipped:
        log.warning("prompts skipped: they cannot be read, or they and max_tokens exceed the context", skipped=skipped)
    return len(left) - skipped


def _group_id(number: int) -> str:
    return f"{number:032x}"


def _task(context: RunContext, prompts: Sequence[Prompt], sampling: Sampling) -> Task:
    settings, base = context.settings, context.base
    assert settings.reward is not None
    return Task(
        base=base.name,
        base_digest=base.digest,
        reward=settings.reward.model_dump_json(),
        prompts=sha256("\n".join(prompt.digest for prompt in prompts).encode()).hexdigest(),
        n=settings.n,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed or 0,
    )


def _claim(out: Path, task: Task, base: Path) -> None:
    """Records the task in `out`, or checks that it is the recorded one. `base` is the directory of the base model."""
    recorded = read_json(out / TASK)
    if recorded is None:
        write_json(out / TASK, asdict(task))
        return
    if recorded.get("base_digest") != task.base_digest and names_base(
        recorded.get("base_digest", ""), base, task.base_digest
    ):
        recorded["base_digest"] = task.base_digest
        write_json(out / TASK, recorded)
    if differing := [key for key, value in asdict(task).items() if recorded.get(key) != value]:
        changes = ", ".join(f"{key} {recorded.get(key)} -> {getattr(task, key)}" for key in differing)
        raise UserError(
            f"{out} holds another distillation ({changes}): name a new --out, or delete this one", param="out"
        )


def _refuse_impossible(prompts: Sequence[Prompt], settings: Settings) -> None:
    """Refuses prompts that are too few to train on or to measure on, and settings that rule out draws of the policy
    although they ask for them, before anything is drawn.
    """
    train = settings.train
    fractions = Fractions(test=train.held_out_fraction, validation=train.validation_fraction)
    splits = Counter(split_of(prompt.root_digest, fractions) for prompt in prompts)
    needed = max(train.min_pairs, train.batch_size)
    if splits[Split.TRAIN] < needed:
        raise UserError(
            f"{len(prompts)} prompts leave {splits[Split.TRAIN]} to train on, fewer than {needed} (train.min_pairs = "
            f"{train.min_pairs}, train.batch_size = {train.batch_size}): give more prompts, or lower these",
            param="prompts",
        )
    test = {prompt.digest for prompt in prompts if split_of(prompt.root_digest, fractions) is Split.TEST}
    if len(test) < 2:
        raise UserError(
            f"train.held_out_fraction = {train.held_out_fraction} keeps {len(test)} of the different prompts to "
            "measure on, and two are needed: give more prompts, or raise it",
            param="prompts",
        )
    if train.refine == "on" and (problem := why_not_drawn(settings)):
        raise UserError(f"train.refine = 'on', but {problem}", param="train.refine")
    if train.refine == "on" and splits[Split.VALIDATION] < MIN_VALIDATION_GROUPS:
        raise UserError(
            f"train.refine = 'on' needs {MIN_VALIDATION_GROUPS} validation prompts, and train.validation_fraction = "
            f"{train.validation_fraction} keeps {splits[Split.VALIDATION]}: give more prompts, or raise it",
            param="prompts",
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Locks the directory for this process until the block or the process ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another process is distilling in {out}; wait for it, or name another --out") from error
        yield

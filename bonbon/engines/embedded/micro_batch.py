"""The rows of one model instance that are drawn together."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import torch
from torch import Tensor

from bonbon.engines.embedded.embedded_candidate import EmbeddedCandidate
from bonbon.engines.embedded.logits_processors import History, LogitsProcessors
from bonbon.engines.embedded.outbox import Outbox
from bonbon.engines.embedded.policy import Policy
from bonbon.engines.embedded.sampler import LogitsProcessor, Sampler
from bonbon.engines.embedded.sequences import Sequences
from bonbon.observability.tracebacks import format_traceback

if TYPE_CHECKING:
    from bonbon.engines.embedded.grammar_masks import GrammarMasks

PREFILL_TOKENS = 16384
"""Prompt tokens, padding included, that are processed in one forward pass (a longer prompt has one of its own)."""

Due = Callable[[int, int], bool]
"""Given the steps done and the rows that run, whether a batch must pause."""

log = structlog.get_logger(__name__)


class MicroBatch:
    """Draws its rows token by token, in calls of transformers' `generate`; rows join and leave between the calls.

    Args:
        policy: the model instance.
        outbox: takes the rows' deltas.
    """

    def __init__(self, policy: Policy, outbox: Outbox) -> None:
        self.rows: list[EmbeddedCandidate] = []
        self._policy, self._outbox = policy, outbox
        self._sequences: Sequences | None = None
        self._masks: GrammarMasks | None = None

    @property
    def running(self) -> int:
        """How many rows are to get more tokens."""
        return sum(row.running for row in self.rows)

    def join(self, rows: Sequence[EmbeddedCandidate]) -> None:
        """Add rows, after processing each distinct prompt once. A prompt that fails fails its own rows only."""
        for group in _prompts(rows):
            try:
                new = self._prefill(group)
            except Exception:
                if len(group) == 1:
                    with self._contain(group[0]):
                        raise
                for same in group:
                    with self._contain(same):
                        self._add(same, self._prefill([same]))
            else:
                self._add([row for same in group for row in same], new)

    def _prefill(self, group: Sequence[Sequence[EmbeddedCandidate]]) -> Sequences:
        """The prompts of `group`, each the same for some rows, as one row each of these."""
        firsts = [same[0].job for same in group]
        new = self._policy.prefill([job.prompt for job in firsts], [job.loaded.adapter for job in firsts])
        new.select([at for at, same in enumerate(group) for _ in same])
        return new

    def _add(self, rows: Sequence[EmbeddedCandidate], sequences: Sequences) -> None:
        self.rows += rows
        with self._contain(self.rows):
            if self._sequences is None:
                self._sequences = sequences
            else:
                self._sequences.join(sequences)

    def run(self, due: Due) -> None:
        """Draw until every row is done, or half of them are, or `due` says so."""
        with self._contain(self.rows):
            self._settle()
            if self._sequences is None:
                return
            sampler = self._sampler()
            adapters = [row.job.loaded.adapter for row in self.rows]
            # A row that has ended goes on for as long as the others do, and must not leave the context meanwhile.
            room = self._policy.context_length - self._sequences.longest
            left = min(room, max(row.left for row in self.rows))
            self._policy.generate(self._sequences, adapters, left, sampler, Step(self, sampler, due))
            self._settle()

    def _sampler(self) -> Sampler:
        samplings, device, vocabulary = (
            [row.sampling for row in self.rows],
            self._policy.device,
            self._policy.vocabulary,
        )
        processors: list[LogitsProcessor] = []
        if any(sampling.changes_logits for sampling in samplings):
            histories = [History(row.job.prompt, row.token_ids) for row in self.rows]
            end_ids = self.rows[0].job.reader.end_ids
            processors.append(LogitsProcessors(samplings, histories, end_ids, vocabulary, device))
        self._masks = None
        if matchers := {at: row.grammar for at, row in enumerate(self.rows) if row.grammar is not None}:
            from bonbon.engines.embedded.grammar_masks import (
                GrammarMasks,  # what it needs is there when there is a grammar
            )

            self._masks = GrammarMasks(matchers, self.rows[0].job.reader.size, vocabulary, device)
            processors.append(self._masks)
        return Sampler(samplings, [row.random for row in self.rows], device, processors)

    def advance(self, sampler: Sampler) -> int:
        """Give every running row its token and send what is ready. Returns how many rows run on."""
        choices = sampler.last
        for at, row in enumerate(self.rows):
            if not row.running or self._refused(at, row):
                continue
            token, logprob = choices.tokens[at], choices.logprobs[at]
            if not math.isfinite(logprob):
                name = row.job.loaded.name
                self._outbox.fail([row.job], f"version {name} gave a token the log-probability {logprob}")
                continue
            top = (choices.top_ids[at], choices.top_logprobs[at]) if choices.top_ids else ([], [])
            if delta := row.add(token, logprob, top):
                self._outbox.put(row.job, delta)
            if row.running and row.complete:
                self._outbox.put(row.job, row.finish("stop"))
        self._outbox.flush()
        if self._masks is not None:
            for at, row in enumerate(self.rows):
                if not row.running:
                    self._masks.release(at)
        return self.running

    def _refused(self, at: int, row: EmbeddedCandidate) -> bool:
        """Whether the row cannot be held to its grammar; then its job is over."""
        if self._masks is None or (failure := self._masks.failures.get(at)) is None:
            return False
        self._outbox.fail([row.job], failure)
        return True

    def _settle(self) -> None:
        """Let go of the rows that are done."""
        keep = [at for at, row in enumerate(self.rows) if row.running]
        if len(keep) < len(self.rows):
            self.rows = [self.rows[at] for at in keep]
            if self._sequences is not None and keep:
                self._sequences.select(keep)
        if not keep:
            self._sequences = None

    @contextmanager
    def _contain(self, rows: Sequence[EmbeddedCandidate]) -> Iterator[None]:
        """Whatever is raised within fails `rows`, and nothing else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - any model may raise anything; the engine serves on
            log.warning("drawing failed", rows=len(rows), exception=format_traceback(error))
            self._outbox.fail((row.job for row in rows), f"drawing failed: {type(error).__name__}: {error}")
            if rows is self.rows:
                self.rows, self._sequences = [], None
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()


class Step:
    """A stopping criterion of transformers: called after each token, it advances the batch."""

    def __init__(self, batch: MicroBatch, sampler: Sampler, due: Due) -> None:
        self._batch, self._sampler, self._due = batch, sampler, due
        self._steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Whether each row ends here, shape (rows,): all of them or none, so that a call of `generate` ends as one."""
        self._steps += 1
        size, running = len(self._batch.rows), self._batch.advance(self._sampler)
        over = 2 * running <= size or self._due(self._steps, running)
        return input_ids.new_full((size,), over, dtype=torch.bool)


def _prompts(rows: Sequence[EmbeddedCandidate]) -> list[list[list[EmbeddedCandidate]]]:
    """Rows with the same prompt and adapter together, in groups of prompts that fit one forward pass."""
    same: dict[tuple[tuple[int, ...], str], list[EmbeddedCandidate]] = {}
    for row in rows:
        same.setdefault((row.job.prompt, row.job.loaded.adapter), []).append(row)
    groups: list[list[list[EmbeddedCandidate]]] = []
    for members in sorted(same.values(), key=lambda members: len(members[0].job.prompt)):
        if not groups or (len(groups[-1]) + 1) * len(members[0].job.prompt) > PREFILL_TOKENS:
            groups.append([])
        groups[-1].append(members)
    return groups

"""The candidates of one model instance that are sampled in one batch."""

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
"""The maximum number of prompt tokens, including padding, in one forward pass; a longer prompt gets its own pass."""
MAX_PADDED = 2
"""How many times as many tokens a forward pass may have with padding as without it; prompts whose lengths differ more
are processed one after the other."""

ShouldPause = Callable[[int, int], bool]
"""Given the number of steps done and of running candidates, returns whether a batch must pause."""

log = structlog.get_logger(__name__)


class MicroBatch:
    """Samples its candidates token by token, in calls of transformers' `generate`.

    Candidates join and leave between the calls.

    Args:
        policy: The model instance.
        outbox: Receives the candidates' deltas.
    """

    def __init__(self, policy: Policy, outbox: Outbox) -> None:
        self.candidates: list[EmbeddedCandidate] = []
        self._policy, self._outbox = policy, outbox
        self._sequences: Sequences | None = None
        self._masks: GrammarMasks | None = None

    @property
    def running(self) -> int:
        """Returns how many candidates are to get more tokens."""
        return sum(candidate.running for candidate in self.candidates)

    def join(self, candidates: Sequence[EmbeddedCandidate]) -> None:
        """Adds candidates, after processing each distinct prompt once.

        A prompt that fails fails only its own candidates.
        """
        for group in _prompts(candidates):
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
                self._add([candidate for same in group for candidate in same], new)

    def _prefill(self, group: Sequence[Sequence[EmbeddedCandidate]]) -> Sequences:
        """Processes the prompts of `group`, each shared by some candidates, and returns one row per candidate."""
        firsts = [same[0].job for same in group]
        new = self._policy.prefill([job.prompt for job in firsts], [job.loaded.adapter for job in firsts])
        new.select([at for at, same in enumerate(group) for _ in same])
        return new

    def _add(self, candidates: Sequence[EmbeddedCandidate], sequences: Sequences) -> None:
        self.candidates += candidates
        with self._contain(self.candidates):
            if self._sequences is None:
                self._sequences = sequences
            else:
                self._sequences.join(sequences)

    def run(self, should_pause: ShouldPause) -> None:
        """Samples until all candidates have ended, or half of them have, or `should_pause` returns true."""
        with self._contain(self.candidates):
            self._settle()
            if self._sequences is None:
                return
            sampler = self._sampler()
            adapters = [candidate.job.loaded.adapter for candidate in self.candidates]
            # An ended candidate's row keeps growing for as long as the others run, and must not leave the context.
            free = self._policy.context_length - self._sequences.longest
            left = min(free, max(candidate.left for candidate in self.candidates))
            self._policy.generate(self._sequences, adapters, left, sampler, Step(self, sampler, should_pause))
            self._settle()

    def _sampler(self) -> Sampler:
        samplings, device, vocabulary = (
            [candidate.sampling for candidate in self.candidates],
            self._policy.device,
            self._policy.vocabulary,
        )
        processors: list[LogitsProcessor] = []
        if any(sampling.changes_logits for sampling in samplings):
            histories = [History(candidate.job.prompt, candidate.token_ids) for candidate in self.candidates]
            end_ids = self.candidates[0].job.reader.end_ids
            processors.append(LogitsProcessors(samplings, histories, end_ids, vocabulary, device))
        self._masks = None
        if matchers := {
            at: candidate.grammar for at, candidate in enumerate(self.candidates) if candidate.grammar is not None
        }:
            # Imported here because it needs llguidance, which is installed whenever there is a grammar.
            from bonbon.engines.embedded.grammar_masks import GrammarMasks

            self._masks = GrammarMasks(matchers, self.candidates[0].job.reader.size, vocabulary, device)
            processors.append(self._masks)
        return Sampler(samplings, [candidate.random for candidate in self.candidates], device, processors)

    def advance(self, sampler: Sampler) -> int:
        """Gives every running candidate its token and sends the deltas that are ready.

        Returns how many are still running.
        """
        choices = sampler.last
        for at, candidate in enumerate(self.candidates):
            if not candidate.running or self._refused(at, candidate):
                continue
            token, logprob = choices.tokens[at], choices.logprobs[at]
            if not math.isfinite(logprob):
                name = candidate.job.loaded.name
                self._outbox.fail(
                    [candidate.job], f"version {name} gave a token the log-probability {logprob}, which is not finite"
                )
                continue
            top = (choices.top_ids[at], choices.top_logprobs[at]) if choices.top_ids else ([], [])
            if delta := candidate.add(token, logprob, top):
                self._outbox.put(candidate.job, delta)
            if candidate.running and candidate.complete:
                self._outbox.put(candidate.job, candidate.finish("stop"))
        self._outbox.flush()
        if self._masks is not None:
            for at, candidate in enumerate(self.candidates):
                if not candidate.running:
                    self._masks.release(at)
        return self.running

    def _refused(self, at: int, candidate: EmbeddedCandidate) -> bool:
        """Returns whether the candidate can no longer follow its grammar, which ends its job."""
        if self._masks is None or (failure := self._masks.failures.get(at)) is None:
            return False
        self._outbox.fail([candidate.job], failure)
        return True

    def _settle(self) -> None:
        """Removes the candidates that have ended."""
        keep = [at for at, candidate in enumerate(self.candidates) if candidate.running]
        if len(keep) < len(self.candidates):
            self.candidates = [self.candidates[at] for at in keep]
            if self._sequences is not None and keep:
                self._sequences.select(keep)
        if not keep:
            self._sequences = None

    @contextmanager
    def _contain(self, candidates: Sequence[EmbeddedCandidate]) -> Iterator[None]:
        """Turns whatever the block raises into a failure of `candidates` only."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a model may raise anything, and the engine must keep serving
            log.warning("sampling failed", candidates=len(candidates), exception=format_traceback(error))
            self._outbox.fail(
                (candidate.job for candidate in candidates), f"sampling failed: {type(error).__name__}: {error}"
            )
            if candidates is self.candidates:
                self.candidates, self._sequences = [], None
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()


class Step:
    """A stopping criterion of transformers, called after each token: it advances the batch."""

    def __init__(self, batch: MicroBatch, sampler: Sampler, should_pause: ShouldPause) -> None:
        self._batch, self._sampler, self._should_pause = batch, sampler, should_pause
        self._steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns whether each row ends here, shape (rows,).

        All rows end or none does, so that the whole call of `generate` ends.
        """
        self._steps += 1
        size, running = len(self._batch.candidates), self._batch.advance(self._sampler)
        over = 2 * running <= size or self._should_pause(self._steps, running)
        return input_ids.new_full((size,), over, dtype=torch.bool)


def _prompts(candidates: Sequence[EmbeddedCandidate]) -> list[list[list[EmbeddedCandidate]]]:
    """Groups candidates by prompt and adapter, and these in groups whose prompts share a forward pass."""
    same: dict[tuple[tuple[int, ...], str], list[EmbeddedCandidate]] = {}
    for candidate in candidates:
        same.setdefault((candidate.job.prompt, candidate.job.loaded.adapter), []).append(candidate)
    groups: list[list[list[EmbeddedCandidate]]] = []
    tokens = 0
    for members in sorted(same.values(), key=lambda members: len(members[0].job.prompt)):
        length = len(members[0].job.prompt)
        padded = (len(groups[-1]) + 1) * length if groups else 0
        if not groups or padded > min(PREFILL_TOKENS, MAX_PADDED * (tokens + length)):
            groups.append([])
            tokens = 0
        groups[-1].append(members)
        tokens += length
    return groups

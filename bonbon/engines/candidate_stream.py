"""The state of one candidate while it is sampled: its tokens, its text, and how much of both was sent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bonbon.engines.engine import Delta, DrawRequest, FinishReason, Token, TokenAlternative
from bonbon.engines.text.transcript import Transcript
from bonbon.tools import ToolCallDelta

if TYPE_CHECKING:
    from bonbon.engines.text.prompt_reader import PromptReader

Top = tuple[list[int], list[float]]
"""The most likely tokens at a position, and their log-probabilities."""


class CandidateStream:
    """Turns the tokens of one candidate into deltas while it is sampled.

    Args:
        request: The request that the candidate belongs to.
        index: The candidate's index in the request.
        prompt: The prompt's token ids.
        reader: The reader that read the prompt; it decodes token ids and knows the end tokens.
    """

    def __init__(self, request: DrawRequest, index: int, prompt: Sequence[int], reader: "PromptReader") -> None:
        self.index, self.sampling = index, request.sampling
        self.finished = False
        self._deltas = request.deltas
        self._detokenizer = reader.detokenizer
        self._end_ids = frozenset() if self.sampling.ignore_eos else reader.end_ids
        # An answer in a chat starts a new text; any other completion continues its prompt.
        self._context = self._detokenizer.context(prompt) if request.prompt.is_continued else ()
        stop, min_tokens = self.sampling.stop, self.sampling.min_tokens
        self._calls = reader.call_reader(request.prompt)
        marks = self._calls is not None and reader.writes_marks
        self._transcript = Transcript(self._detokenizer, stop, self._context, min_tokens=min_tokens, special=marks)
        self._reads = request.deltas or bool(self.sampling.stop)
        self.token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._alternatives: list[Top] = []
        self._sent = 0

    @property
    def left(self) -> int:
        """Returns how many more tokens the candidate may have."""
        return self.sampling.max_tokens - len(self.token_ids)

    def add(self, token: int, logprob: float, top: Top) -> Delta | None:
        """Appends a token, and returns the delta to send now, if any."""
        end = token in self._end_ids
        self.token_ids.append(token)
        self._logprobs.append(logprob)
        self._alternatives.append(top)
        if self._reads and not end:
            self._transcript.read(self.token_ids)
        if end or self._transcript.stopped:
            return self._finish("stop", self.token_ids[:-1] if end else self.token_ids)
        if self.left == 0:
            return self.finish("length")
        return self._delta(None) if self._deltas else None

    def finish(self, reason: FinishReason) -> Delta:
        """Returns the candidate's last delta, after which no more tokens follow."""
        return self._finish(reason, self.token_ids)

    def _finish(self, reason: FinishReason, token_ids: list[int]) -> Delta:
        self.finished = True
        self._transcript.close(token_ids)
        return self._delta("stop" if self._transcript.stopped else reason)

    def _delta(self, finish: FinishReason | None) -> Delta:
        new = range(self._sent, len(self.token_ids))
        first = self._context[-1] if self._context else None
        before = [self.token_ids[at - 1] if at else first for at in new]
        wanted = self.sampling.top_logprobs
        text = self._transcript.release(final=finish is not None)
        calls: tuple[ToolCallDelta, ...] = ()
        if self._calls is not None:
            text, calls = self._calls.read(text, final=finish is not None)
        delta = Delta(
            self.index,
            text,
            tuple(self.token_ids[self._sent :]),
            tuple(self._logprobs[self._sent :]),
            tuple(self._token(self.token_ids[at], last) for at, last in zip(new, before, strict=True)),
            tuple(self._likeliest(at, last) for at, last in zip(new, before, strict=True)) if wanted else (),
            finish,
            calls,
        )
        self._sent = len(self.token_ids)
        return delta

    def _token(self, token_id: int, before: int | None) -> Token:
        token = self._detokenizer.token(token_id, before)
        return Token(token.text, None) if token_id in self._end_ids else token

    def _likeliest(self, at: int, before: int | None) -> tuple[TokenAlternative, ...]:
        ids, logprobs = self._alternatives[at]
        pairs = zip(ids[: self.sampling.top_logprobs], logprobs, strict=False)
        return tuple(TokenAlternative(i, self._token(i, before), logprob) for i, logprob in pairs)

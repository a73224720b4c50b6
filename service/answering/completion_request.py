"""A checked request, in one form for all endpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.engines.request_limits import check_length
from bonbon.errors import UserError
from bonbon.pairs.group_records import Group
from bonbon.prompt import Prompt


def estimated_tokens(prompt: Prompt) -> int:
    """Returns about how many tokens a prompt has: texts are assumed to have one token per four characters."""
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    texts = [prompt.text or "", prompt.tools or "", *(message["content"] for message in prompt.messages or ())]
    return sum(map(len, texts)) // 4 + 1


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request for `n` choices for each prompt.

    Attributes:
        best_of: Candidates from which the n best are returned. With None, the model name determines the number.
        fit: Whether max_tokens may be reduced to the free space in the context, because the client set no length.
        field_names: The client's names of fields that are named differently in chat completions.
        idempotency: The client's key for this request, the same in each attempt.
        fingerprint: A digest of everything that the request asks for.
        retry: Whether this is a repeated attempt.
        prompt_logprobs: Whether to return the log-probabilities of the prompts' tokens. If `sampling.max_tokens` is 0,
            nothing is generated, and the prompts themselves are the answer.
    """

    model: str
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    n: int = 1
    best_of: int | None = None
    fit: bool = False
    field_names: Mapping[str, str] = field(default_factory=dict)
    store: bool = True
    tenant: str = ""
    user: str = ""
    request_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    idempotency: str | None = None
    fingerprint: str | None = None
    retry: bool = False
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0 and (self.n > 1 or (self.best_of or 1) > 1):
            raise UserError(
                "at temperature 0 all candidates are the same, so there is nothing to choose from: "
                "set n and best_of to 1, or use a temperature above 0",
                param="n" if self.n > 1 else "best_of",
            )
        if not self.draws_any and (self.n > 1 or (self.best_of or 1) > 1):
            raise UserError(
                "with max_tokens 0 there is nothing to choose from: set n and best_of to 1",
                param="n" if self.n > 1 else "best_of",
            )
        if self.best_of is not None and self.best_of < self.n:
            raise UserError(
                f"best_of {self.best_of} is less than n {self.n}: set best_of to n or more", param="best_of"
            )

    def idempotency_of(self, index: int) -> str | None:
        """Returns the key of a prompt's group. It is a digest, so that no tenant can use another tenant's key."""
        if self.idempotency is None or not self.store:
            return None
        return sha256("\0".join((self.tenant, self.idempotency, str(index))).encode()).hexdigest()

    def check_same(self, group: Group, prompt: Prompt) -> None:
        """Raises UserError if `group` was logged under this request's key for a different request.

        Groups of earlier releases have no fingerprint; for them only the prompt and the number of choices are compared.
        """
        if group.fingerprint is None:
            same = group.prompt.digest == prompt.digest and len(group.served) == self.n
        else:
            same = group.fingerprint == self.fingerprint
        if not same:
            raise UserError(
                "this idempotency-key was used for a different request: use a new key for each request, and send the "
                "same body in each attempt",
                param="idempotency-key",
            )

    @property
    def draws_any(self) -> bool:
        """Whether any tokens are generated."""
        return self.sampling.max_tokens > 0

    @property
    def read_tokens(self) -> int:
        """The approximate number of prompt tokens whose log-probabilities are computed."""
        return sum(map(estimated_tokens, self.prompts)) if self.prompt_logprobs else 0

    @property
    def drawn(self) -> int | None:
        """`best_of`, or 1 if all candidates are the same or nothing is generated."""
        return 1 if self.sampling.temperature == 0 or not self.draws_any else self.best_of

    def limit(self, *, max_best_of: int, max_prompts: int, context_length: int) -> None:
        """Raises UserError, naming the limit, if the request exceeds one.

        Token ids that are more than the context are refused here, before the engine looks at each of them.
        """
        for name, value in (("n", self.n), ("best_of", self.best_of or 1)):
            if value > max_best_of:
                raise UserError(f"{name} {value} is above this service's limit of {max_best_of}", param=name)
        if len(self.prompts) > max_prompts:
            raise UserError(
                f"{len(self.prompts)} prompts are more than this service's limit of {max_prompts} per request",
                param="prompt",
            )
        for prompt in self.prompts:
            if prompt.token_ids is not None:
                request = DrawRequest(prompt, self.model, self.n, self.sampling)
                check_length(len(prompt.token_ids), request, context_length, max_tokens=0)

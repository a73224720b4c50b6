"""What a request asks for, once it has been checked: the same for every endpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from bonbon.engines.engine import Sampling
from bonbon.errors import UserError
from bonbon.pairs.group_records import Group
from bonbon.prompt import Prompt


@contextmanager
def naming_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Have every UserError of the block name a field as the client does: by `names`, where they have it."""
    try:
        yield
    except UserError as error:
        error.param = names.get(error.param or "", error.param)
        raise


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """`n` choices for each prompt, the best of `best_of` draws (None: as many as the model name means).

    `fit` lets max_tokens shrink to the room that the prompt leaves in the context: the client named no length.
    `field_names` says what the client calls those fields whose name in its request is not the one that they have in
    chat completions.
    `idempotency` is the client's name for this request, the same in each attempt, and `fingerprint` a digest of all
    that the request asks for; `retry` says that this is not the first attempt. `prompt_logprobs` asks for the
    log-probabilities of the prompts' tokens. With `sampling.max_tokens` 0 nothing is drawn, and the prompts themselves
    are the answer.
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
                "at temperature 0 every draw is the same, so there is nothing to choose from: "
                "set n and best_of to 1, or a temperature above 0",
                param="n" if self.n > 1 else "best_of",
            )
        if not self.draws_any and (self.n > 1 or (self.best_of or 1) > 1):
            raise UserError(
                "with max_tokens 0 there is nothing to choose from: set n and best_of to 1",
                param="n" if self.n > 1 else "best_of",
            )
        if self.best_of is not None and self.best_of < self.n:
            raise UserError(
                f"best_of {self.best_of} is less than n {self.n}: n of best_of are returned", param="best_of"
            )

    def idempotency_of(self, index: int) -> str | None:
        """The name of a prompt's group: a digest, so that no tenant can name another's."""
        if self.idempotency is None or not self.store:
            return None
        return sha256("\0".join((self.tenant, self.idempotency, str(index))).encode()).hexdigest()

    def check_same(self, group: Group, prompt: Prompt) -> None:
        """Raise UserError when `group`, which answered a request of this name, answered another request than this.

        Groups of earlier releases have no fingerprint: of those only the prompt and the number of choices are compared.
        """
        if group.fingerprint is None:
            same = group.prompt.digest == prompt.digest and len(group.served) == self.n
        else:
            same = group.fingerprint == self.fingerprint
        if not same:
            raise UserError(
                "this idempotency-key came before, with another request: use a new key for each request, and send the "
                "same body in each attempt",
                param="idempotency-key",
            )

    @property
    def draws_any(self) -> bool:
        """Whether there is anything to draw."""
        return self.sampling.max_tokens > 0

    @property
    def read_tokens(self) -> int:
        """About how many tokens of prompts are read for their log-probabilities.

        A text is taken to have a token for every four characters.
        """
        if not self.prompt_logprobs:
            return 0
        return sum(
            len(prompt.token_ids) if prompt.token_ids is not None else len(prompt.text or "") // 4 + 1
            for prompt in self.prompts
        )

    @property
    def drawn(self) -> int | None:
        """`best_of`, and 1 where every draw is the same or there is none."""
        return 1 if self.sampling.temperature == 0 or not self.draws_any else self.best_of

    def limit(self, *, max_best_of: int, max_prompts: int) -> None:
        """Raise UserError, naming the limit, when the request asks for more."""
        for name, value in (("n", self.n), ("best_of", self.best_of or 1)):
            if value > max_best_of:
                raise UserError(f"{name} {value} is above this service's limit of {max_best_of}", param=name)
        if len(self.prompts) > max_prompts:
            raise UserError(
                f"{len(self.prompts)} prompts are more than this service's limit of {max_prompts} per request",
                param="prompt",
            )

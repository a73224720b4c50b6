"""A world small enough to enumerate, so that win rate and KL of any policy are computed instead of sampled.

It has 8 prompts of one token each. Completions have at most 5 of 7 words, which gives 19 608 per prompt, from 2 801
prefixes. The reward is a sum over words (by prompt) and pairs of neighbours, divided by the square root of the length,
without ties. The base is a small Llama trained on a random Markov chain.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bonbon.pairs.reading.snapshot import Split
from trainer.data.groups import Groups, Ragged, win_chances

PROMPTS, WORDS, LONGEST = 8, 7, 5
END = 0
VOCABULARY = WORDS + 1
"""The tokens that a policy generates: the end, and the words 1 to 7. Prompts have higher token ids."""
PRETRAINING = 300

COMPLETIONS = [
    words for length in range(LONGEST + 1) for words in itertools.product(range(1, VOCABULARY), repeat=length)
]
"""Every completion, shortest first. The first 2 801 are therefore also every prefix that a token can follow."""


@dataclass(frozen=True, slots=True)
class Size:
    """Width and number of layers of a model."""

    width: int = 64
    layers: int = 2


@dataclass(frozen=True, slots=True)
class Drawn:
    """Groups as the trainer reads them, with each candidate's position in this world.

    `prompts` are the numbers of the prompts and `completions` the positions in `COMPLETIONS`, [candidates] each.
    """

    groups: Groups
    prompts: Tensor
    completions: Tensor


@dataclass(frozen=True, slots=True)
class Measures:
    """Exact means over prompts. `from_best_of_n` is KL(best-of-n || policy); ties count half."""

    win_rate: float
    kl: float
    from_best_of_n: float
    length: float


class ExactWorld:
    """One sample of the rewards and the base.

    Args:
        seed: Seed of everything random in the world.
        size: Size of the base.
    """

    def __init__(self, seed: int, size: Size = Size()) -> None:
        self.seed, self.size = seed, size
        rng = np.random.default_rng(seed)
        self.base = _pretrained(rng, seed, size)
        self.base_logprobs = logprobs(self.base)
        self.rewards = _rewards(rng)

    @cached_property
    def quantiles(self) -> Tensor:
        """P0(reward <= reward of the completion), [prompts, completions]."""
        order = self.rewards.argsort(dim=1)
        mass = self.base_logprobs.exp().gather(1, order).cumsum(1)
        return torch.zeros_like(mass).scatter(1, order, mass)

    def best_of_n(self, n: int) -> Tensor:
        """Returns best-of-n's exact probabilities, Q^n - (Q - p)^n, [prompts, completions]."""
        base = self.base_logprobs.exp()
        return self.quantiles**n - (self.quantiles - base).clamp(min=0) ** n

    def measure(self, logprobs: Tensor, n: int, prompts: slice = slice(None)) -> Measures:
        """Returns the measures of a policy with these log-probabilities, [prompts, completions], averaged over
        `prompts`.
        """
        logprobs, base, best = logprobs[prompts], self.base_logprobs[prompts], self.best_of_n(n)[prompts]
        policy, wins = logprobs.exp(), self.quantiles[prompts] - base.exp() / 2
        return Measures(
            win_rate=_mean(policy * wins),
            kl=_mean(policy * (logprobs.clamp(min=-1e9) - base)),
            from_best_of_n=_mean(torch.xlogy(best, best) - best * logprobs.clamp(min=-1e9)),
            length=_mean(policy * WORD_COUNTS),
        )

    def draw(
        self,
        groups: int,
        n: int,
        *,
        seed: int,
        prompts: int = PROMPTS,
        policy: PreTrainedModel | None = None,
        opponents: Drawn | None = None,
    ) -> Drawn:
        """Returns groups of n candidates for the first `prompts` prompts.

        Args:
            policy: The policy that draws; the base by default.
            opponents: Groups of the base with which the candidates are compared; by default the groups themselves.
        """
        generator = torch.Generator().manual_seed(seed)
        asked = torch.randint(prompts, (groups,), generator=generator)
        if policy is not None:
            drawn = _sampled(policy, asked.repeat_interleave(n), generator).view(groups, n)
        else:
            drawn = self._of_base(asked, n, generator)
        rewards, order = self.rewards[asked[:, None], drawn].sort(dim=1)
        return self._as_logged(asked, drawn.gather(1, order), rewards, opponents)

    def _of_base(self, asked: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Returns n completions for each prompt, drawn from the base's exact probabilities, [groups, n]."""
        uniform = torch.rand(len(asked), n, generator=generator, dtype=torch.float64)
        drawn = torch.empty(len(asked), n, dtype=torch.long)
        for prompt, mass in enumerate(self.base_logprobs.exp().cumsum(1)):
            here = asked == prompt
            drawn[here] = torch.searchsorted(mass, uniform[here] * mass[-1]).clamp(max=len(COMPLETIONS) - 1)
        return drawn

    def _as_logged(self, asked: Tensor, completions: Tensor, rewards: Tensor, opponents: Drawn | None) -> Drawn:
        """Returns groups with these prompts [groups], completions and rewards [groups, n], worst first."""
        groups, n = completions.shape
        wins = np.empty((groups, n))
        for prompt in range(PROMPTS):
            here = (asked == prompt).numpy()
            scores = rewards.numpy()[here].flatten()
            theirs = scores if opponents is None else opponents.groups.rewards[(opponents.prompts == prompt).numpy()]
            wins[here] = win_chances(scores, np.sort(theirs)).reshape(-1, n)
        places, prompts = completions.flatten(), asked.repeat_interleave(n)
        logged = Groups(
            numbers=np.arange(groups),
            distributions=[(prompt,) for prompt in asked.tolist()],
            by_base=np.full(groups, opponents is None),
            split=np.full(groups, str(Split.TRAIN)),
            n=np.full(groups, n),
            temperatures=np.ones(groups, dtype=np.float32),
            logprobs=self.base_logprobs[prompts, places].numpy(),
            rewards=rewards.flatten().numpy(),
            wins=wins.flatten(),
            prompts=_ragged([(prompt + VOCABULARY,) for prompt in asked.tolist()]),
            completions=_ragged([COMPLETIONS[place] for place in places.tolist()]),
        )
        return Drawn(logged, prompts, places)


def sequence_logprobs(model: PreTrainedModel, prompts: Tensor, completions: Tensor) -> Tensor:
    """Returns log-probabilities, in nats, of completions (positions in `COMPLETIONS`) to these prompts, [batch]
    each."""
    tokens = TOKENS[completions]
    logits = _next_token(model, prompts, tokens[:, :-1])
    return (logits.gather(-1, tokens[..., None])[..., 0] * MASK[completions]).sum(1)


@torch.no_grad()
def logprobs(model: PreTrainedModel) -> Tensor:
    """Returns 64-bit log-probabilities of every completion to every prompt, [prompts, completions].

    One pass over the longest prefixes computes all of them.
    """
    longest = torch.tensor(list(itertools.product(range(1, VOCABULARY), repeat=LONGEST - 1)))
    result = []
    for prompt in range(PROMPTS):
        after = _next_token(model, torch.full((len(longest),), prompt), longest)[*FIRST_WITH_PREFIX]
        result.append((after[PREFIXES, TOKENS].double() * MASK).sum(1))
    return torch.stack(result)


@torch.no_grad()
def _sampled(model: PreTrainedModel, prompts: Tensor, generator: torch.Generator) -> Tensor:
    """Samples a completion to each prompt, token by token; returns their positions in `COMPLETIONS`, [batch]."""
    words = torch.empty(len(prompts), 0, dtype=torch.long)
    lengths, places = torch.zeros_like(prompts), torch.zeros_like(prompts)
    unfinished = torch.ones_like(prompts, dtype=torch.bool)
    for _ in range(LONGEST):
        token = _next_token(model, prompts, words)[:, -1].exp().multinomial(1, generator=generator)[:, 0]
        unfinished &= token != END
        places = torch.where(unfinished, places * WORDS + token - 1, places)
        lengths += unfinished
        words = torch.cat([words, token[:, None]], dim=1)
    return (WORDS**lengths - 1) // (WORDS - 1) + places


def parameters(model: PreTrainedModel) -> int:
    """Returns the number of a model's weights."""
    return sum(weight.numel() for weight in model.parameters())


def _next_token(model: PreTrainedModel, prompts: Tensor, words: Tensor) -> Tensor:
    """Returns log-probabilities of the token after the prompt and after each word, [batch, 1 + words, vocabulary]."""
    ids = torch.cat([prompts[:, None] + VOCABULARY, words], dim=1)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[..., :VOCABULARY].log_softmax(-1)


def _pretrained(rng: np.random.Generator, seed: int, size: Size) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY + PROMPTS,
        hidden_size=size.width,
        intermediate_size=size.width * 5 // 2,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    model = LlamaForCausalLM(config)
    chain = rng.dirichlet(np.full(VOCABULARY, 0.7), size=(PROMPTS, VOCABULARY + 1)).cumsum(-1)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(PRETRAINING):
        prompts, tokens = _walk(rng, chain, 256)
        said = _next_token(model, prompts, tokens[:, :-1].clamp(min=0))
        mask = tokens >= 0
        loss = -(said.gather(-1, tokens.clamp(min=0)[..., None])[..., 0] * mask).sum() / mask.sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return model.eval()


def _walk(rng: np.random.Generator, chain: NDArray[np.float64], count: int) -> tuple[Tensor, Tensor]:
    """Samples prompts [count] and tokens [count, LONGEST], -1 after the end."""
    prompts = rng.integers(PROMPTS, size=count)
    tokens, last, ended = np.full((count, LONGEST), -1), np.full(count, VOCABULARY), np.zeros(count, bool)
    for place in range(LONGEST):
        drawn = (rng.random((count, 1)) > chain[prompts, last]).sum(1).clip(max=VOCABULARY - 1)
        tokens[~ended, place] = drawn[~ended]
        ended |= drawn == END
        last = drawn
    return torch.from_numpy(prompts), torch.from_numpy(tokens)


def _rewards(rng: np.random.Generator) -> Tensor:
    word, neighbours = rng.normal(size=(PROMPTS, VOCABULARY)), rng.normal(size=(VOCABULARY, VOCABULARY))
    sums = np.array(
        [
            (word[:, list(words)].sum(1) + sum(neighbours[pair] for pair in itertools.pairwise(words)))
            / math.sqrt(len(words) + 1)
            for words in COMPLETIONS
        ]
    ).T
    return torch.from_numpy(sums + 1e-6 * rng.normal(size=sums.shape))


def _number(words: tuple[int, ...]) -> int:
    """Returns a completion's position in `COMPLETIONS`."""
    shorter: int = (WORDS ** len(words) - 1) // (WORDS - 1)
    place = 0
    for word in words:
        place = place * WORDS + word - 1
    return shorter + place


def _ragged(lists: Sequence[tuple[int, ...]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, lists)])
    return Ragged(np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(offsets[-1])), offsets)


def _mean(values: Tensor) -> float:
    return float(values.sum(1).mean())


WORD_COUNTS = torch.tensor([len(words) for words in COMPLETIONS])
TOKENS = torch.tensor([[*words, *[END] * (LONGEST - len(words))] for words in COMPLETIONS])
"""Tokens of the completions, [completions, LONGEST]; the longest ones have no end token."""
MASK = torch.arange(LONGEST) <= WORD_COUNTS[:, None]
"""Whether a completion has a token in this place, the end token included, [completions, LONGEST]."""
PREFIXES = torch.tensor(
    [[_number(words[:place]) if place <= len(words) else 0 for place in range(LONGEST)] for words in COMPLETIONS]
)
"""The prefix that each token follows, [completions, LONGEST]."""
FIRST_WITH_PREFIX = torch.tensor(
    [
        (_number((*words, *[1] * (LONGEST - 1 - len(words)))) - _number((1,) * (LONGEST - 1)), len(words))
        for words in COMPLETIONS
        if len(words) < LONGEST
    ]
).T
"""Row of the longest prefixes, and position in it, where each prefix ends, [2, prefixes]."""

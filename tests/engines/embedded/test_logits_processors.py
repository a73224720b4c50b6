"""Tests penalties and biases against transformers' processors and the fake engine's distribution."""

import math
import random

import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from bonbon.engines.embedded.logits_processors import History, LogitsProcessors
from bonbon.engines.embedded.sampler import Sampler
from bonbon.engines.engine import Sampling
from bonbon.engines.fake_distribution import weights

VOCABULARY, END = 12, 11
CPU = torch.device("cpu")
HISTORY = History((0, 1, 1, 3), (4, 4, 5, 1))
CASES = [
    Sampling(),
    Sampling(repetition_penalty=1.3),
    Sampling(repetition_penalty=0.7, temperature=0.6),
    Sampling(frequency_penalty=0.4, presence_penalty=-0.3),
    Sampling(logit_bias=((0, 1.5), (4, -100.0), (END, 100.0))),
    Sampling(min_tokens=5),
    Sampling(min_tokens=4),
    Sampling(min_tokens=9, ignore_eos=True, presence_penalty=2.0),
    Sampling(min_p=0.2, temperature=1.4, frequency_penalty=-1.0),
    Sampling(min_p=0.05, top_k=5, top_p=0.7, logit_bias=((3, 2.0),), repetition_penalty=1.1, min_tokens=8),
    Sampling(temperature=0, logit_bias=((6, 50.0),)),
]


def logits(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 2 * torch.randn(rows, VOCABULARY, generator=generator)


def processors(samplings: list[Sampling], histories: list[History]) -> LogitsProcessors:
    return LogitsProcessors(samplings, histories, {END}, VOCABULARY, CPU)


def test_the_repetition_penalty_and_the_shortest_length_are_those_of_transformers() -> None:
    scores = logits(1)
    ids = torch.tensor([[*HISTORY.prompt, *HISTORY.sampled]])
    for sampling, theirs in (
        (Sampling(repetition_penalty=1.3), RepetitionPenaltyLogitsProcessor(1.3)),
        (Sampling(repetition_penalty=0.7), RepetitionPenaltyLogitsProcessor(0.7)),
        (Sampling(min_tokens=5), MinNewTokensLengthLogitsProcessor(4, 5, END)),
        (Sampling(min_tokens=4), MinNewTokensLengthLogitsProcessor(4, 4, END)),
    ):
        torch.testing.assert_close(processors([sampling], [HISTORY])(scores), theirs(ids, scores.clone()))


def test_a_row_that_asks_for_nothing_keeps_its_logits() -> None:
    scores = logits(len(CASES))
    changed = processors(CASES, [HISTORY] * len(CASES))(scores)
    for row, sampling in enumerate(CASES):
        assert sampling.changes_logits or torch.equal(changed[row], scores[row])
    assert torch.equal(scores, logits(len(CASES)))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_tokens_follow_the_changed_distribution_beside_rows_that_ask_for_something_else(case: int) -> None:
    """Returns the total variation distance of 2,000 samples from the fake engine's distribution; noise gives 0.03."""
    draws = 2_000
    samplings = [CASES[case] if row % 2 else CASES[(case + 1) % len(CASES)] for row in range(2 * draws)]
    scores = logits(1).expand(2 * draws, -1)
    rows = [random.Random(4)] * (2 * draws)
    sampler = Sampler(samplings, rows, CPU, [processors(samplings, [HISTORY] * (2 * draws))])
    sampler(torch.zeros(2 * draws, 1), scores.clone())
    sampled = torch.tensor(sampler.last.tokens[1::2])
    seen = torch.bincount(sampled, minlength=VOCABULARY) / draws
    distribution = torch.tensor(weights(scores[0].tolist(), END, CASES[case], HISTORY.prompt, HISTORY.sampled))
    assert 0.5 * (seen - distribution / distribution.sum()).abs().sum() < 0.06
    whole = (scores[0] / (CASES[case].temperature or 1)).log_softmax(-1)
    torch.testing.assert_close(torch.tensor(sampler.last.logprobs[1::2]), whole[sampled])


def test_tokens_are_counted_as_they_are_drawn() -> None:
    sampling = Sampling(frequency_penalty=1.0, min_tokens=6)
    scores = logits(2)
    counting = processors([sampling, sampling], [HISTORY, History((), ())])
    for token in (5, 7):
        counting.note(torch.tensor([[token], [token]]))
    fresh = processors([sampling] * 2, [History((), (*HISTORY.sampled, 5, 7)), History((), (5, 7))])
    torch.testing.assert_close(counting(scores), fresh(scores))
    assert counting(scores)[0, END] == scores[0, END]
    assert counting(scores)[1, END] == -math.inf

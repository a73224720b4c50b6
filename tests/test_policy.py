"""The policy's log-probabilities against independent computations, and its files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from sampled_groups import EOS, VOCABULARY, draw, make_base
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bonbon.engines.base import VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.settings import TrainSettings
from trainer.training.checkpoint import trained_weights
from trainer.training.policy import load_policy, save_policy, sequence_logprobs

Sequence = tuple[list[int], list[int], float]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def padded(sequences: list[Sequence], padding: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prompts, completions and temperatures as `sequence_logprobs` takes them."""
    rows = [prompt + completion for prompt, completion, _ in sequences]
    length = max(map(len, rows)) + padding
    ids = torch.tensor([row + [7] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask, torch.tensor([len(one[0]) for one in sequences]), torch.tensor([one[2] for one in sequences])


def one_by_one(model: Any, sequences: list[Sequence]) -> list[float]:
    """Token by token in 64-bit, without padding, batches or the code under test."""
    sums = []
    for prompt, completion, temperature in sequences:
        logits = model(torch.tensor([prompt + completion])).logits[0].double() / temperature
        logprobs = logits.log_softmax(-1)
        sums.append(math.fsum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(completion)))
    return sums


SEQUENCES: list[Sequence] = [
    ([2, 5, 9], [4, 8, 8, EOS], 1.0),
    ([2], [11, 30], 0.7),
    ([2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16], 1.5),
    ([2, 5, 9], [EOS], 1.0),
    ([2, 5], [], 1.0),
]


@torch.no_grad()
def test_a_padded_batch_of_mixed_temperatures_equals_one_sequence_at_a_time(model: Any) -> None:
    logprobs = sequence_logprobs(model, *padded(SEQUENCES))
    assert logprobs.dtype == torch.float32
    assert logprobs.tolist() == pytest.approx(one_by_one(model, SEQUENCES), abs=1e-4)
    assert logprobs[-1] == 0


@torch.no_grad()
def test_padding_changes_nothing(model: Any) -> None:
    wide, narrow = (sequence_logprobs(model, *padded(SEQUENCES, padding)) for padding in (9, 0))
    torch.testing.assert_close(wide, narrow)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
def test_equals_what_the_sampler_summed_while_drawing(model: Any, temperature: float) -> None:
    """Truncated draws too: no end of sequence is added to them."""
    torch.manual_seed(1)
    prompt = [2, 17, 5]
    drawn = draw(model, prompt, 32, temperature=temperature, max_tokens=12)
    assert any(EOS in tokens for tokens, _ in drawn)
    assert any(EOS not in tokens for tokens, _ in drawn)
    logprobs = sequence_logprobs(model, *padded([(prompt, tokens, temperature) for tokens, _ in drawn]))
    assert logprobs.tolist() == pytest.approx([logprob for _, logprob in drawn], abs=1e-4)


def test_all_completions_of_one_token_sum_to_one(model: Any) -> None:
    with torch.no_grad():
        logprobs = sequence_logprobs(model, *padded([([2, 8], [token], 0.8) for token in range(VOCABULARY)]))
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-5)


def lora(**changes: Any) -> TrainSettings:
    return TrainSettings(lora_rank=4, lora_alpha=8, **changes)


def save_trained(base: Path, directory: Path, settings: TrainSettings, reference: VersionFiles | None = None) -> Any:
    """Nudge every trainable weight and save; the model as it was saved."""
    policy = load_policy(base, reference, settings)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_policy(policy, directory, base=base, base_name="tiny", weights=trained_weights(policy))
    return policy.eval()


@torch.no_grad()
def test_a_fresh_adapter_is_the_base_exactly(base: Path, model: Any) -> None:
    policy = load_policy(base, None, lora())
    assert torch.equal(sequence_logprobs(policy, *padded(SEQUENCES)), sequence_logprobs(model, *padded(SEQUENCES)))
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_seed_gives_the_same_fresh_adapter(base: Path) -> None:
    first, same, other = (trained_weights(load_policy(base, None, lora(seed=seed))) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@torch.no_grad()
def test_an_adapter_is_saved_alone_and_continued_where_it_ends(base: Path, model: Any, tmp_path: Path) -> None:
    trained = save_trained(base, tmp_path / "adapter", lora())
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert str(base.parent) not in (tmp_path / "adapter" / "adapter_config.json").read_text()

    version = VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, tmp_path / "adapter")
    expected = sequence_logprobs(trained, *padded(SEQUENCES))
    continued = load_policy(base, version, lora())
    assert torch.equal(sequence_logprobs(continued, *padded(SEQUENCES)), expected)
    assert any(parameter.requires_grad for parameter in continued.parameters())
    assert not torch.allclose(expected, sequence_logprobs(model, *padded(SEQUENCES)))

    merged = load_policy(base, version, TrainSettings(method="full"))
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(sequence_logprobs(merged, *padded(SEQUENCES)), expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in merged.parameters())


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_a_full_model_is_saved_with_its_tokenizer(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "tiny", tied=tied)
    trained = save_trained(base, tmp_path / "full", TrainSettings(method="full"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "full").eval()
    expected = sequence_logprobs(trained, *padded(SEQUENCES))
    assert torch.equal(sequence_logprobs(again, *padded(SEQUENCES)), expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "full")("w5 w6")["input_ids"] == [5, 6]
    assert [file.name for file in (tmp_path / "full").iterdir() if file.suffix in {".bin", ".pt", ".pkl"}] == []
    assert str(tmp_path) not in (tmp_path / "full" / "config.json").read_text()

    version = VersionFiles("tiny-bonbon-0001", VersionKind.FULL, tmp_path / "full")
    continued = load_policy(base, version, TrainSettings(method="full"))
    assert torch.equal(sequence_logprobs(continued, *padded(SEQUENCES)), expected)
    with pytest.raises(UserError, match=r"train\.method = full"):
        load_policy(base, version, lora())


def test_named_modules_only(base: Path) -> None:
    policy = load_policy(base, None, lora(lora_targets="q_proj, v_proj"))
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, _ in policy.named_parameters() if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match="no_such_proj"):
        load_policy(base, None, lora(lora_targets="no_such_proj"))


def test_frozen_weights_can_be_half_and_trained_ones_never(base: Path) -> None:
    policy = load_policy(base, None, lora(), dtype=torch.bfloat16)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in policy.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    full = load_policy(base, None, TrainSettings(method="full"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


def test_pickled_weights_are_never_read(base: Path, model: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_policy(tmp_path, None, lora())
    adapter = VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, tmp_path)
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load_policy(base, adapter, lora())


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    save_trained(base, tmp_path / "adapter", lora())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(UserError, match="tiny-bonbon-0001"):
        load_policy(base, VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, tmp_path / "adapter"), lora())


def test_a_cut_file_is_refused(base: Path, tmp_path: Path) -> None:
    save_trained(base, tmp_path / "adapter", lora())
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="tiny-bonbon-0001"):
        load_policy(base, VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, tmp_path / "adapter"), lora())

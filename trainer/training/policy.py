"""The policy being trained: loading it, its log-probabilities, saving it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig

from bonbon.engines.base import VersionFiles, VersionKind
from bonbon.engines.policy import load_model
from bonbon.errors import UserError
from bonbon.registry.manifest import MANIFEST
from bonbon.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_SUFFIXES = {".json", ".jinja", ".txt", ".model"}


def load_policy(
    base: Path, reference: VersionFiles | None, settings: TrainSettings, *, dtype: torch.dtype = torch.float32
) -> "PreTrainedModel | PeftModel":
    """The reference policy, with the weights that `settings.method` trains set to require gradients.

    It starts as the reference exactly: a fresh adapter adds nothing, an adapter version is continued where it ends.
    So the reference log-probabilities of a run are the policy's own before the first step.

    Args:
        base: directory of the base model.
        reference: the version that sampled the pairs; None or a base version: the base.
        dtype: of the frozen weights; those that are trained are always 32-bit.

    Raises:
        UserError: the files cannot be loaded, or the method does not fit the reference.
    """
    kind = VersionKind.BASE if reference is None else reference.kind
    if settings.method == "full":
        dtype = torch.float32
    if kind is VersionKind.FULL and settings.method == "lora":
        raise UserError(
            f"{reference and reference.name} has weights of its own, and an adapter trained on it would not fit the "
            "base it is served with: set train.method = full",
            param="train.method",
        )
    source = reference.directory if reference and kind is VersionKind.FULL else base
    model: PreTrainedModel = load_model(source, torch.device("cpu"), dtype).requires_grad_(False)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if kind is VersionKind.ADAPTER and reference is not None:
        adapted = _load_adapter(model, reference)
        if settings.method == "lora":
            return adapted
        model = adapted.merge_and_unload()
    if settings.method == "lora":
        return _add_adapter(model, settings)
    return model.requires_grad_(True)


def sequence_logprobs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor, temperatures: Tensor
) -> Tensor:
    """Log-probability of each row's completion, in nats, summed over exactly the tokens given.

    Args:
        model: a causal language model.
        input_ids: prompt and completion, padded on the right, [batch, length].
        attention_mask: 1 on tokens, 0 on padding, [batch, length].
        prompt_lengths: tokens of the prompt, at least 1, [batch].
        temperatures: each row's own sampling temperature, [batch].

    Returns:
        32-bit, [batch], whatever the model computes in.
    """
    length = input_ids.shape[1]
    first = int(prompt_lengths.min())
    # The output layer is the largest tensor of all: only positions that predict a completion's token are asked for.
    keep = length - first + 1
    output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=keep)
    logits = output.logits[:, -keep:-1].float() / temperatures[:, None, None]
    targets = input_ids[:, first:, None]
    logprobs: Tensor = logits.gather(-1, targets)[..., 0] - logits.logsumexp(-1)
    positions = torch.arange(first, length, device=input_ids.device)
    completion = (positions >= prompt_lengths[:, None]) & attention_mask[:, first:].bool()
    return logprobs.where(completion, 0.0).sum(-1)


def save_policy(
    model: "PreTrainedModel | PeftModel", directory: Path, *, base: Path, base_name: str, weights: dict[str, Tensor]
) -> None:
    """Write what an engine loads: the adapter alone, or the whole model, in the base's precision, with its tokenizer.

    Safetensors only. The model is not fit for training after this.

    Args:
        weights: the model's state dictionary, gathered from all processes.
        base_name: what the adapter says it belongs to: a name, for a path would be another machine's.
    """
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base_name
        # The vocabulary never changes here; peft would ask the hub whether it did.
        model.save_pretrained(directory, state_dict=weights, safe_serialization=True, save_embedding_layers=False)
        # peft's model card is a form nobody has filled in.
        (directory / "README.md").unlink(missing_ok=True)
        return
    dtype = AutoConfig.from_pretrained(base, local_files_only=True).dtype or torch.float32
    # Gathered from several processes, tied weights share no memory any more, by which they would be known.
    tied = model.all_tied_weights_keys
    weights = {name: weight.to(dtype) for name, weight in weights.items() if name not in tied}
    model.to(dtype).save_pretrained(directory, state_dict=weights)
    for file in sorted(base.iterdir()):
        about_weights = file.name == MANIFEST or file.name.endswith(".index.json")
        if file.suffix in TOKENIZER_SUFFIXES and not about_weights and not (directory / file.name).exists():
            shutil.copyfile(file, directory / file.name)


def _load_adapter(model: "PreTrainedModel", reference: VersionFiles) -> PeftModel:
    if not (reference.directory / "adapter_model.safetensors").is_file():
        raise UserError(f"{reference.name} has no adapter_model.safetensors in {reference.directory}")
    try:
        return PeftModel.from_pretrained(model, reference.directory, is_trainable=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{reference.name} in {reference.directory} does not fit the base model: {error}") from error


def _add_adapter(model: "PreTrainedModel", settings: TrainSettings) -> PeftModel:
    targets: str | list[str] = settings.lora_targets
    if targets != "all-linear":
        targets = [target.strip() for target in settings.lora_targets.split(",")]
    config: Any = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"train.lora_targets = {settings.lora_targets!r} fits no module of the model: {error}",
            param="train.lora_targets",
        ) from error
    assert isinstance(adapted, PeftModel)
    return adapted

"""A causal language model in this process, with its adapters."""

import math
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from bonbon.engines.adapters.adapter_files import Adapter
from bonbon.engines.adapters.peft_layers import forget_names, strip
from bonbon.engines.candidate_stream import Top
from bonbon.engines.embedded.sequences import Sequences
from bonbon.engines.text import end_tokens
from bonbon.engines.text.context_length import context_length
from bonbon.engines.text.model_config import keeps_state
from bonbon.engines.text.tokenizer import load_tokenizer
from bonbon.errors import EngineError, UserError
from bonbon.files.load_errors import needs_code, why

POSITIONS = 256
"""The number of positions whose log-probabilities are in memory at a time."""
BASE = "__base__"
"""peft's name for no adapter."""


class Policy:
    """Prefills prompts and samples tokens, each row with its own adapter or none. One thread owns it.

    Args:
        directory: The model in Hugging Face format, as safetensors; none of its code is run.
        tokenizer: The tokenizer of the base.
        device: The device for the weights.
        dtype: The type of the weights; None keeps the checkpoint's.

    Raises:
        UserError: The directory does not contain a valid causal language model that can be sampled from in batches.
    """

    def __init__(self, directory: Path, tokenizer: Any, device: torch.device, dtype: torch.dtype | None) -> None:
        self.device = device
        self.model = load_model(directory, device, dtype)
        _refuse_stateful(self.model, directory)
        self.config = self.model.config.get_text_config()
        self.vocabulary: int = self.model.get_input_embeddings().num_embeddings
        self.context_length = context_length(self.config, tokenizer, directory)
        # The model's own sampling defaults must not change what is sampled.
        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        self._peft: PeftModel | None = None
        self._serials = count()
        self._active: str | None = None

    def attach(self, adapter: Adapter) -> str:
        """Adds an adapter to the model and returns its key.

        Raises UserError, and leaves nothing behind, when it does not fit.
        """
        key = f"adapter{next(self._serials)}"  # Version names may have dots, module names may not.
        try:
            if self._peft is None:
                self._peft = PeftModel(
                    self.model, adapter.config, key, autocast_adapter_dtype=False, low_cpu_mem_usage=True
                )
            else:
                self._peft.add_adapter(key, adapter.config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
            self._fill(key, adapter)
            self._peft.eval()
        except (UserError, ValueError, RuntimeError, KeyError, TypeError) as error:
            self.detach(key)
            raise adapter.misfit(error) from error
        self._active = None
        try:
            self._sample(key)
        except torch.OutOfMemoryError:
            self.detach(key)
            raise
        except Exception as error:
            self.detach(key)
            raise UserError(
                f"adapter {adapter.directory} cannot be sampled from ({type(error).__name__}: {error}): it adapts a "
                "module that cannot be wrapped, such as a router of experts; train it with train.lora_targets that "
                "exclude this module"
            ) from error
        return key

    def mixes(self, key: str) -> bool:
        """Returns whether a batch can mix rows with and without the adapter without changing their logits.

        It cannot where a model flattens its batch before an adapted module, as OPT and Qwen2-MoE do.
        """
        alone = torch.cat([self._sample(BASE), self._sample(key)])
        try:
            mixed = self._sample(BASE, key)
        except Exception:  # noqa: BLE001 - the type of the error depends on the model
            return False
        tolerance = 0.05 * float(alone.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
        return torch.allclose(mixed, alone, rtol=0.05, atol=tolerance, equal_nan=True)

    @torch.inference_mode()
    def _sample(self, *adapters: str) -> Tensor:
        """Returns the 32-bit logits after a few tokens, (rows, vocabulary), one row for each of `adapters`."""
        ids = torch.arange(4, device=self.device).remainder(self.vocabulary).expand(len(adapters), -1)
        mask = torch.ones_like(ids)
        output = self._call(lambda model: model, adapters, input_ids=ids, attention_mask=mask, use_cache=False)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def detach(self, key: str) -> None:
        """Removes an adapter from the model."""
        others = set(self._peft.peft_config) - {key} if self._peft else set()
        if self._peft is None or not others:
            self._peft = None
            self.model = strip(self.model)
        elif key in self._peft.peft_config:
            self._peft.set_adapter(others.pop(), inference_mode=True)
            self._peft.delete_adapter(key)
        self._active = None

    def prefill(self, prompts: Sequence[Sequence[int]], adapters: Sequence[str]) -> Sequences:
        """Processes all but the last token of each prompt. `adapters` has one key, or BASE, per prompt."""
        length = max(map(len, prompts)) + 1
        ids = [[0] * (length - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        sequences = Sequences(
            torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device), DynamicCache()
        )
        read = sequences.mask[:, :-1]
        self._call(
            lambda model: model,
            adapters,
            input_ids=sequences.ids[:, :-1],
            attention_mask=read,
            position_ids=(read.cumsum(-1) - 1).clamp(min=0),
            past_key_values=sequences.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return sequences

    def generate(
        self, sequences: Sequences, adapters: Sequence[str], steps: int, choose: "Choose", stopped: "Stopped"
    ) -> None:
        """Extends `sequences` by at most `steps` tokens; `choose` picks each token and `stopped` ends the call."""
        ids = self._call(
            lambda model: model.generate,
            adapters,
            input_ids=sequences.ids,
            attention_mask=sequences.mask,
            past_key_values=sequences.cache,
            max_new_tokens=steps,
            logits_processor=[choose],
            stopping_criteria=[stopped],
        )
        sequences.extend(ids)

    @torch.inference_mode()
    def prompt_logprobs(self, prompt: Sequence[int], adapter: str, alternatives: int) -> tuple[list[float], list[Top]]:
        """Returns the log-probability of each token of a prompt but the first, and the most likely tokens there.

        Raises EngineError when the logits of a prompt of this length do not fit into memory.
        """
        if len(prompt) == 1:
            return [], []
        ids = torch.tensor([prompt], device=self.device)
        try:
            # In one forward pass: some models' position embeddings depend on the number of tokens read in it.
            output = self._call(
                lambda model: model, [adapter], input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            )
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"the log-probabilities of a prompt of {len(prompt)} tokens do not fit into memory; send a shorter "
                "prompt"
            ) from error
        logprobs: list[float] = []
        tops: list[Top] = []
        for at in range(0, len(prompt) - 1, POSITIONS):
            distribution = output.logits[0, at : min(at + POSITIONS, len(prompt) - 1)].float().log_softmax(-1)
            logprobs += distribution.gather(1, ids[0, at + 1 : at + 1 + len(distribution), None]).squeeze(1).tolist()
            likeliest = distribution.topk(min(alternatives, distribution.shape[1]), dim=-1)
            tops += zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        if any(math.isnan(logprob) for logprob in logprobs):
            raise EngineError("the model gave the prompt a log-probability that is not a number")
        return logprobs, tops

    def _call(self, method: Callable[[Any], Callable[..., Any]], adapters: Sequence[str], **arguments: Any) -> Any:
        """Calls a method of the model with the adapter of each row."""
        distinct = set(adapters)
        if gone := distinct - {BASE, *(self._peft.peft_config if self._peft else ())}:
            raise EngineError(f"adapter {', '.join(gone)} was unloaded")
        if self._peft is None:
            return method(self.model)(**arguments)
        if len(distinct) > 1:
            self._activate(next(iter(distinct - {BASE})))
            try:
                return method(self._peft)(**arguments, adapter_names=list(adapters))
            except BaseException:
                forget_names(self.model)
                raise
        self._activate(distinct.pop())
        return method(self.model)(**arguments)

    def _activate(self, key: str) -> None:
        """Makes this adapter, or none, the default of all rows, which is cheaper than naming each row's adapter."""
        if key == self._active or self._peft is None:
            return
        if key == BASE:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(key, inference_mode=True)
        self._active = key

    def _fill(self, key: str, adapter: Adapter) -> None:
        """Loads the weights into the adapter's empty layers, after checking that all of them fit."""
        assert self._peft is not None
        wanted = get_peft_model_state_dict(self._peft, adapter_name=key, save_embedding_layers=False)
        adapter.check(wanted)
        weights = {name: tensor.to(self.device, self.model.dtype) for name, tensor in adapter.weights.items()}
        set_peft_model_state_dict(self._peft, weights, adapter_name=key, low_cpu_mem_usage=True)


class Choose(Protocol):
    """Chooses the next token of each row; see `Sampler`."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor: ...


class Stopped(Protocol):
    """Returns whether each row ends after its latest token, shape (rows,)."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor: ...


def load_model(directory: Path, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Loads a causal language model for sampling. Raises UserError when a weight is missing, corrupt or not finite."""
    if (directory / "adapter_config.json").exists():
        raise UserError(f"{directory} contains an adapter, not a whole model; give the base model's directory")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        remedy = (
            "serve it on vLLM servers that trust its code, and give their addresses with --url"
            if needs_code(error)
            else "it must be a causal language model in Hugging Face format with safetensors weights"
        )
        raise UserError(f"model {directory} cannot be loaded ({why(error)}); {remedy}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"model {directory} lacks the weights {', '.join(missing[:3])}; copy or save it again")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"model {directory}: {name} has NaN or infinite weights; copy or train it again")
    return model.to(device).eval()


def end_ids(model: Any, named: Sequence[str | int] | None = None) -> frozenset[int]:
    """Returns the end tokens of a model that `load_model` has loaded; see `bonbon.engines.text.end_tokens`."""
    directory = Path(model.name_or_path)
    vocabulary = model.get_input_embeddings().num_embeddings
    return end_tokens.end_ids(directory, load_tokenizer(directory), vocabulary, named)


def _refuse_stateful(model: Any, directory: Path) -> None:
    """Raises UserError when rows of a batch cannot join and leave with their keys and values alone."""
    if keeps_state(model.config):
        raise UserError(
            f"model {directory} ({model.config.model_type}) keeps more state than the keys and values of attention, "
            "such as a recurrent state, which the embedded engine does not support; serve it with engine = 'vllm'",
            param="engine",
        )

"""A causal language model in this process, with the adapters on it."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from bonbon.engines.adapter import Adapter
from bonbon.engines.sequences import Sequences
from bonbon.errors import EngineError, UserError

BASE = "__base__"
"""peft's name for: no adapter."""


class Policy:
    """Prefills prompts and draws tokens, each row with its own adapter or none. One thread owns it.

    Args:
        directory: model in Hugging Face format, safetensors only; none of its code is run.
        device: where the weights go.
        dtype: of the weights; None keeps the checkpoint's.

    Raises:
        UserError: the directory does not hold a sound causal language model.
    """

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype | None) -> None:
        self.device = device
        self.model = load_model(directory, device, dtype)
        self.config = self.model.config.get_text_config()
        self.vocabulary: int = self.model.get_input_embeddings().num_embeddings
        self.end_ids = end_ids(self.model)
        # The model's own sampling defaults must not touch the draws.
        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        self._peft: PeftModel | None = None
        self._serials = count()
        self._active: str | None = None

    def attach(self, adapter: Adapter) -> str:
        """Put an adapter on the model and return its key. Raises UserError when it does not fit; then nothing stays."""
        key = f"adapter{next(self._serials)}"  # version names may have dots, module names may not
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
        return key

    def detach(self, key: str) -> None:
        """Take an adapter off the model again."""
        others = set(self._peft.peft_config) - {key} if self._peft else set()
        if self._peft is None or not others:
            self._peft = None
            self.model = _strip(self.model)
        elif key in self._peft.peft_config:
            self._peft.set_adapter(others.pop(), inference_mode=True)
            self._peft.delete_adapter(key)
        self._active = None

    def prefill(self, prompts: Sequence[Sequence[int]], adapters: Sequence[str]) -> Sequences:
        """Read all but the last token of each prompt. `adapters` are keys, or BASE, one per prompt."""
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
        """Extend `sequences` by at most `steps` tokens; `choose` picks them and `stopped` says when to end."""
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

    def _call(self, method: Callable[[Any], Callable[..., Any]], adapters: Sequence[str], **arguments: Any) -> Any:
        """Call a method of the model with each row's adapter in place."""
        distinct = set(adapters)
        if gone := distinct - {BASE, *(self._peft.peft_config if self._peft else ())}:
            raise EngineError(f"adapter {', '.join(gone)} was unloaded")
        if self._peft is None:
            return method(self.model)(**arguments)
        if len(distinct) > 1:
            self._activate(next(iter(distinct - {BASE})))
            return method(self._peft)(**arguments, adapter_names=list(adapters))
        self._activate(distinct.pop())
        return method(self.model)(**arguments)

    def _activate(self, key: str) -> None:
        """Have rows without a name of their own use this adapter, or none. Cheaper than naming every row's."""
        if key == self._active or self._peft is None:
            return
        if key == BASE:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(key, inference_mode=True)
        self._active = key

    def _fill(self, key: str, adapter: Adapter) -> None:
        """Load the weights into the adapter's empty layers, once every one of them is known to fit."""
        assert self._peft is not None
        wanted = get_peft_model_state_dict(self._peft, adapter_name=key, save_embedding_layers=False)
        adapter.check(wanted)
        weights = {name: tensor.to(self.device, self.model.dtype) for name, tensor in adapter.weights.items()}
        set_peft_model_state_dict(self._peft, weights, adapter_name=key, low_cpu_mem_usage=True)


class Choose(Protocol):
    """See `Sampler`."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor: ...


class Stopped(Protocol):
    """Whether each row ends after the token just drawn, shape (rows,)."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor: ...


def load_model(directory: Path, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A causal language model ready to draw. Raises UserError when any weight is missing, corrupt or not finite."""
    if (directory / "adapter_config.json").exists():
        raise UserError(f"{directory} holds an adapter, not a whole model; name the base model's directory")
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
        raise UserError(
            f"model {directory} cannot be loaded ({type(error).__name__}: {error}); it must be a causal language "
            "model in Hugging Face format with safetensors weights"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"model {directory} lacks the weights {', '.join(missing[:3])}; copy or save it again")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"model {directory}: {name} has NaN or infinite weights; copy or train it again")
    if getattr(model, "_is_stateful", False):
        raise UserError(f"model {directory} keeps recurrent state; the embedded engine serves attention-only models")
    return model.to(device).eval()


def end_ids(model: Any) -> frozenset[int]:
    """The ids that end a sequence, by the generation config or else the model's."""
    end = model.generation_config.eos_token_id
    end = model.config.get_text_config().eos_token_id if end is None else end
    return frozenset([] if end is None else [end] if isinstance(end, int) else end)


def _strip(model: Any) -> Any:
    """`model` with every adapter layer replaced by the layer it wraps."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model

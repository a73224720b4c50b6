"""A sequence-classification model as a function from text to a number. The one module here that imports torch."""

from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from bonbon.errors import UserError

DIGESTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True)
class Text:
    """What the model reads; `tail` is how it ends: the part that must not be cut.

    `pair` is the second segment of a two-segment input. `special_tokens` is false for the output of a chat template,
    which brings its own.
    """

    text: str
    tail: str
    pair: str | None = None
    special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """The model's number, and whether the text, or even its tail, was cut to the model's length."""

    value: float
    truncated: bool
    tail_truncated: bool


class SequenceModel:
    """Loads on construction, and blocks: for a worker thread.

    Args:
        directory: a model in Hugging Face format, safetensors only.
        label: index or name of the label to read, for a model of several. It reads the label's log-probability, or
            its logit for a multi-label model; a model of one label gives its logit.
        device: a torch device, or `auto`.
        dtype: a torch floating type, or `auto`: the checkpoint's on a GPU, 32-bit elsewhere.
        max_length: tokens; by default all that the model takes.

    Raises:
        UserError: it cannot be loaded, or is no reward model.
    """

    def __init__(
        self,
        directory: Path,
        *,
        label: int | str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_length: int | None = None,
    ) -> None:
        self.directory = directory
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.model, self.tokenizer = _load(directory, self.device, dtype)
        self.label = _label(self.model.config, label)
        self._configured_pad: int | None = self.model.config.pad_token_id
        self.max_length = self._length(max_length)

    def __call__(self, texts: list[Text]) -> list[Reading]:
        """Read a batch in one forward pass. Padding changes no value beyond floating-point noise."""
        encoded = [self._encode(text) for text in texts]
        logits = self._logits([inputs for inputs, _, _ in encoded])
        return [
            Reading(value, truncated, tail)
            for value, (_, truncated, tail) in zip(self._values(logits), encoded, strict=True)
        ]

    @property
    def reads_logit(self) -> bool:
        """Whether values are logits, of a label by itself; otherwise they are log-probabilities among labels."""
        return self.label is None or self.model.config.problem_type == "multi_label_classification"

    def _values(self, logits: torch.Tensor) -> list[float]:
        """One number for each row of [batch, labels]."""
        if self.label is None:
            return logits[:, 0].tolist()
        return (logits if self.reads_logit else logits.log_softmax(-1))[:, self.label].tolist()

    def _encode(self, text: Text) -> tuple[dict[str, list[int]], bool, bool]:
        encoding = self.tokenizer(text.text, text.pair, add_special_tokens=text.special_tokens, verbose=False)
        inputs: dict[str, list[int]] = {
            name: list(encoding[name]) for name in ("input_ids", "token_type_ids") if name in self._takes(encoding)
        }
        ids = inputs["input_ids"]
        if len(ids) <= self.max_length:
            return inputs, False, False
        # From the left, so that what is judged stays whole; the token that encoders pool, or a BOS, stays in front.
        first = ids[:1] if ids[0] in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id) else []
        cut = {name: values[: len(first)] + values[len(first) - self.max_length :] for name, values in inputs.items()}
        tail = len(self.tokenizer(text.tail, add_special_tokens=False, verbose=False)["input_ids"])
        return cut, True, tail + len(first) > self.max_length

    def _takes(self, encoding: Any) -> set[str]:
        names = set(encoding)
        return names if getattr(self.model.config, "type_vocab_size", 0) else names - {"token_type_ids"}

    @torch.inference_mode()
    def _logits(self, batch: list[dict[str, list[int]]]) -> torch.Tensor:
        """[batch, labels], 32-bit, on the CPU."""
        longest = max(len(inputs["input_ids"]) for inputs in batch)
        padding = {"input_ids": self._pad_id(batch), "token_type_ids": 0}
        tensors = {
            name: torch.tensor([inputs[name] + [padding[name]] * (longest - len(inputs[name])) for inputs in batch])
            for name in batch[0]
        }
        lengths = torch.tensor([len(inputs["input_ids"]) for inputs in batch])
        tensors["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        logits = self.model(**{name: tensor.to(self.device) for name, tensor in tensors.items()}).logits
        return logits.float().cpu()  # type: ignore[no-any-return]

    def _pad_id(self, batch: list[dict[str, list[int]]]) -> int:
        """The configured padding token, or a token that the batch has not.

        Decoders pool the last token that is not padding, by its id. Where none is configured they were trained
        without padding, and an end token used for it would hide the texts' own ends.
        """
        if (configured := self._configured_pad) is not None:
            return configured
        used = {token for inputs in batch for token in inputs["input_ids"]}
        absent: int = next(token for token in range(len(used) + 1) if token not in used)
        self.model.config.pad_token_id = absent
        return absent

    def _length(self, asked: int | None) -> int:
        config = self.model.config
        limit = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 10**30)
        if asked is not None and asked > limit:
            raise UserError(f"max_length = {asked} exceeds the {limit} tokens that {self.directory} takes; lower it")
        return int(min(asked or limit, limit))


def digest(directory: Path) -> str:
    """SHA-256 over the names and contents of a model's weights, configuration and tokenizer. Reads them all."""
    total = sha256()
    for path in sorted({path for pattern in DIGESTED for path in directory.glob(pattern)}):
        with path.open("rb") as file:
            total.update(f"{path.name} {file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _load(directory: Path, device: torch.device, dtype: str) -> tuple[Any, Any]:
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            directory,
            config=config,
            dtype=_dtype(dtype, device),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"reward model {directory} cannot be loaded: {error}") from error
    missing = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if missing:
        raise UserError(
            f"{directory} is no trained reward model: its weights lack {', '.join(missing[:3])}; "
            "give a sequence-classification model in safetensors"
        )
    return model.eval().to(device), tokenizer


def _dtype(name: str, device: torch.device) -> Any:
    if name == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def _label(config: Any, label: int | str | None) -> int | None:
    names: dict[int, str] = dict(config.id2label)
    if label is None:
        if len(names) == 1:
            return None
        raise UserError(f"the reward model has {len(names)} labels; set `label` to one of {_listed(names)}")
    if len(names) == 1 and label in (0, names[0]):
        return None
    index = next((i for i, name in names.items() if label in (i, name, str(i))), None)
    if index is None:
        raise UserError(f"label = {label!r} is none of the reward model's: {_listed(names)}")
    return index


def _listed(names: dict[int, str]) -> str:
    return ", ".join(f"{index} ({name})" for index, name in sorted(names.items()))

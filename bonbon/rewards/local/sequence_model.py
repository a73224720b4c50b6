"""A sequence-classification model as a function from text to a number."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog
import torch

from bonbon.engines.text.tokenizer import load_tokenizer
from bonbon.errors import RewardError, UserError
from bonbon.rewards.local.head import Output, choose_head
from bonbon.rewards.local.weights import load_classifier

Side = Literal["right", "left"]
SIDES: tuple[Side, ...] = ("right", "left")

LONGEST_CHECK = 1024
"""Tokens of the longest text that is read when a model is loaded, to see that it can be."""

log = structlog.get_logger(__name__)


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
        label: index or name of the output to read, for a model of several.
        output: what of it is the score; see `bonbon.rewards.local.head`.
        device: a torch device, or `auto`.
        dtype: a torch floating type, or `auto`: the checkpoint's on a GPU, 32-bit elsewhere.
        max_length: tokens; by default all that the model takes.

    Raises:
        UserError: it cannot be loaded, is no reward model, or cannot read a short text, one of its length, or both at
            once.
    """

    def __init__(
        self,
        directory: Path,
        *,
        label: int | str | None = None,
        output: Output = "auto",
        device: str = "auto",
        dtype: str = "auto",
        max_length: int | None = None,
    ) -> None:
        self.directory = directory
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.tokenizer = load_tokenizer(directory)
        self.model = load_classifier(directory, self.device, dtype)
        self.head = choose_head(self.model.config, label, output)
        self._config = self.model.config.get_text_config()
        self._vocabulary: int = self.model.get_input_embeddings().num_embeddings
        self._configured_pad = _known(self._config.pad_token_id, self._vocabulary)
        self.max_length = self._length(max_length)
        self._side: Side | None = "right"
        self._check()

    def __call__(self, texts: list[Text]) -> list[Reading]:
        """Read a batch, in one forward pass where the model can. Padding changes no value beyond floating-point noise.

        Raises RewardError when a text has a token that the model does not know.
        """
        encoded = [self._encode(text) for text in texts]
        logits = self._logits([inputs for inputs, _, _ in encoded])
        return [
            Reading(value, truncated, tail)
            for value, (_, truncated, tail) in zip(self.head.values(logits), encoded, strict=True)
        ]

    def _encode(self, text: Text) -> tuple[dict[str, list[int]], bool, bool]:
        encoding = self.tokenizer(text.text, text.pair, add_special_tokens=text.special_tokens, verbose=False)
        inputs: dict[str, list[int]] = {
            name: list(encoding[name]) for name in ("input_ids", "token_type_ids") if name in self._takes(encoding)
        }
        ids = inputs["input_ids"]
        if not ids:
            raise RewardError("the reward model has nothing to read: prompt and completion are empty")
        unknown = next((token for token in ids if token >= self._vocabulary), None)
        if unknown is not None:
            raise RewardError(
                f"the text has the token {self.tokenizer.convert_ids_to_tokens(unknown)!r} (id {unknown}), which the "
                f"reward model's tokenizer knows and the reward model, with its {self._vocabulary} tokens, does not"
            )
        if len(ids) <= self.max_length:
            return inputs, False, False
        # From the left, so that what is judged stays whole; the token that encoders pool, or a BOS, stays in front.
        first = ids[:1] if ids[0] in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id) else []
        cut = {name: values[: len(first)] + values[len(first) - self.max_length :] for name, values in inputs.items()}
        tail = len(self.tokenizer(text.tail, add_special_tokens=False, verbose=False)["input_ids"])
        return cut, True, tail + len(first) > self.max_length

    def _takes(self, encoding: Any) -> set[str]:
        """What of an encoding is given to the model: which segment a token is of only where it tells segments apart."""
        segments = getattr(self._config, "type_vocab_size", 0) > 1 or self._config.model_type == "xlnet"
        return set(encoding) - (set() if segments else {"token_type_ids"})

    def _logits(self, batch: list[dict[str, list[int]]]) -> torch.Tensor:
        """[batch, labels], 32-bit, on the CPU."""
        if self._side is None:
            return torch.cat([self._forward([inputs], "right") for inputs in batch])
        return self._forward(batch, self._side)

    @torch.inference_mode()
    def _forward(self, batch: list[dict[str, list[int]]], side: Side) -> torch.Tensor:
        longest = max(len(inputs["input_ids"]) for inputs in batch)
        padding = {"input_ids": self._pad_id(batch), "token_type_ids": 0}
        columns: dict[str, list[list[int]]] = {name: [] for name in [*batch[0], "attention_mask"]}
        for inputs in batch:
            missing = longest - len(inputs["input_ids"])
            for name, values in inputs.items():
                fill = [padding[name]] * missing
                columns[name].append(fill + values if side == "left" else values + fill)
            ones, zeros = [1] * (longest - missing), [0] * missing
            columns["attention_mask"].append(zeros + ones if side == "left" else ones + zeros)
        output = self.model(**{name: torch.tensor(rows, device=self.device) for name, rows in columns.items()})
        return output.logits.float().cpu()  # type: ignore[no-any-return]

    def _pad_id(self, batch: list[dict[str, list[int]]]) -> int:
        """The configured padding token, or a token that the batch has not.

        Decoders pool the last token that is not padding, by its id. Where none is configured they were trained
        without padding, and an end token used for it would hide the texts' own ends.
        """
        if (configured := self._configured_pad) is not None:
            return configured
        used = {token for inputs in batch for token in inputs["input_ids"]}
        absent: int = next(token for token in range(len(used) + 1) if token not in used)
        self._config.pad_token_id = absent
        return absent

    def _length(self, asked: int | None) -> int:
        limits = [
            self.tokenizer.model_max_length,
            getattr(self._config, "max_position_embeddings", None),
            _places(self.model),
        ]
        limit = min(limit for limit in limits if limit is not None and limit > 0)
        if asked is not None and asked > limit:
            raise UserError(f"max_length = {asked} exceeds the {limit} tokens that {self.directory} takes; lower it")
        return int(min(asked or limit, limit))

    def _check(self) -> None:
        """Read a short text, one as long as it may be, and both at once, and choose how batches are padded.

        Most models may be padded on the right, XLNet on the left; what may not be padded at all is read text by text.
        """
        short, _, _ = self._encode(Text("A short text.", ""))
        length = min(self.max_length, LONGEST_CHECK)
        long = {name: (values * length)[:length] for name, values in short.items()}
        try:
            alone = torch.cat([self._forward([short], "right"), self._forward([long], "right")])
        except Exception as error:
            raise UserError(
                f"the reward model {self.directory} cannot read texts of {len(short['input_ids'])} and {length} tokens "
                f"({type(error).__name__}: {error}); lower the reward's max_length, or use another model",
                param="reward",
            ) from error
        if not torch.isfinite(alone).all():
            raise UserError(
                f"the reward model {self.directory} gave a score that is not finite; set the reward's dtype to "
                "float32, or use another model",
                param="reward",
            )
        self._side = next((side for side in SIDES if self._agrees(alone, [short, long], side)), None)
        if self._side is None:
            log.warning(
                "the reward model scores padded texts otherwise than without padding, so it reads one text at a time",
                model=str(self.directory),
            )

    def _agrees(self, alone: torch.Tensor, batch: list[dict[str, list[int]]], side: Side) -> bool:
        try:
            together = self._forward(batch, side)
        except Exception as error:  # noqa: BLE001 - what it is that fails depends on the model
            log.info("the reward model reads no batch", padding=side, error=f"{type(error).__name__}: {error}")
            return False
        noise = 1e-3 if self.model.dtype == torch.float32 else 0.05
        return torch.allclose(together, alone, rtol=noise, atol=noise * float(alone.abs().max()))


def _known(token: int | None, vocabulary: int) -> int | None:
    return token if token is not None and 0 <= token < vocabulary else None


def _places(model: Any) -> int | None:
    """Tokens for which the model has learnt positions, where it numbers them from its padding token's on (RoBERTa)."""
    tables = [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and "position" in name.rpartition(".")[2] and module.padding_idx
    ]
    return min(tables, default=None)

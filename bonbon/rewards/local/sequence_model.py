"""A sequence-classification model that maps texts to numbers."""

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
"""The maximum number of tokens of the test text that a model reads when it is loaded."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Text:
    """A text for the model to read; `tail` is its last part, which should not be truncated.

    `pair` is the second segment of a two-segment input. `special_tokens` is false for the output of a chat template,
    which already contains them.
    """

    text: str
    tail: str
    pair: str | None = None
    special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """The model's number, and whether the text, or even its tail, was truncated to the model's length."""

    value: float
    truncated: bool
    tail_truncated: bool


class SequenceModel:
    """Loads a model when it is constructed, and reads texts. Both block, so use a worker thread.

    Args:
        directory: A model in Hugging Face format, as safetensors.
        label: The index or name of the output to use, for a model with several.
        output: What the output means; see `bonbon.rewards.local.head`.
        device: A torch device, or `auto`.
        dtype: A torch floating type, or `auto` for the checkpoint's type on a GPU and 32-bit elsewhere.
        max_length: The maximum number of tokens; the default is the maximum of the model.

    Raises:
        UserError: The model cannot be loaded, is not a reward model, or cannot read a short text, one of maximum
            length, or both in a batch.
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
        """Reads a batch, in one forward pass where the model can. Padding changes values only by floating-point noise.

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
            raise RewardError("the reward model cannot score an empty prompt with an empty completion")
        unknown = next((token for token in ids if token >= self._vocabulary), None)
        if unknown is not None:
            raise RewardError(
                f"the text has the token {self.tokenizer.convert_ids_to_tokens(unknown)!r} (id {unknown}), which the "
                f"reward model's tokenizer knows but the reward model, with its {self._vocabulary} token ids, does not"
            )
        if len(ids) <= self.max_length:
            return inputs, False, False
        # Truncate on the left, so that the completion stays whole, and keep the CLS or BOS token in front.
        first = ids[:1] if ids[0] in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id) else []
        cut = {name: values[: len(first)] + values[len(first) - self.max_length :] for name, values in inputs.items()}
        tail = len(self.tokenizer(text.tail, add_special_tokens=False, verbose=False)["input_ids"])
        return cut, True, tail + len(first) > self.max_length

    def _takes(self, encoding: Any) -> set[str]:
        """Returns the fields of an encoding that the model takes: token types only where it distinguishes segments."""
        segments = getattr(self._config, "type_vocab_size", 0) > 1 or self._config.model_type == "xlnet"
        return set(encoding) - (set() if segments else {"token_type_ids"})

    def _logits(self, batch: list[dict[str, list[int]]]) -> torch.Tensor:
        """Returns 32-bit logits [batch, labels] on the CPU."""
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
        """Returns the configured padding token, or a token that the batch does not contain.

        Decoders pool the last token that is not padding, by its id. Models without a configured padding token were
        trained without padding, and padding with an end token would hide the ends of the texts.
        """
        if (configured := self._configured_pad) is not None:
            return configured
        used = {token for inputs in batch for token in inputs["input_ids"]}
        absent: int = next(token for token in range(len(used) + 1) if token not in used)
        self._config.pad_token_id = absent
        return absent

    def _length(self, requested: int | None) -> int:
        limits = [
            self.tokenizer.model_max_length,
            getattr(self._config, "max_position_embeddings", None),
            _places(self.model),
        ]
        limit = min(limit for limit in limits if limit is not None and limit > 0)
        if requested is not None and requested > limit:
            raise UserError(
                f"max_length = {requested} exceeds the maximum of {self.directory}, {limit} tokens; lower it"
            )
        return int(min(requested or limit, limit))

    def _check(self) -> None:
        """Reads a short text, one of maximum length, and both in a batch, and chooses how batches are padded.

        Most models can be padded on the right, XLNet on the left; a model that cannot be padded at all reads texts one
        by one.
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
                f"the reward model {self.directory} returned a score that is not finite; set the reward's dtype to "
                "float32, or use another model",
                param="reward",
            )
        self._side = next((side for side in SIDES if self._agrees(alone, [short, long], side)), None)
        if self._side is None:
            log.warning(
                "padding changes the scores of the reward model, so it reads one text at a time",
                model=str(self.directory),
            )

    def _agrees(self, alone: torch.Tensor, batch: list[dict[str, list[int]]], side: Side) -> bool:
        try:
            batched = self._forward(batch, side)
        except Exception as error:  # noqa: BLE001 - the type of the error depends on the model
            log.info(
                "the reward model cannot read a padded batch", padding=side, error=f"{type(error).__name__}: {error}"
            )
            return False
        noise = 1e-3 if self.model.dtype == torch.float32 else 0.05
        return torch.allclose(batched, alone, rtol=noise, atol=noise * float(alone.abs().max()))


def _known(token: int | None, vocabulary: int) -> int | None:
    return token if token is not None and 0 <= token < vocabulary else None


def _places(model: Any) -> int | None:
    """Returns the number of learnt positions of a model that numbers them from its padding token's on (RoBERTa)."""
    tables = [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and "position" in name.rpartition(".")[2] and module.padding_idx
    ]
    return min(tables, default=None)

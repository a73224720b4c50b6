"""A reward that scores with a sequence-classification model."""

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog
from pydantic import Field

from bonbon.concurrency.micro_batcher import MicroBatcher
from bonbon.errors import RewardError, RewardNotStarted, UserError
from bonbon.extras import install
from bonbon.files.model_files import resolve_model
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward
from bonbon.rewards.reward_options import Options

if TYPE_CHECKING:
    from bonbon.rewards.local.conversation import Conversation
    from bonbon.rewards.local.sequence_model import Reading, SequenceModel, Text

log = structlog.get_logger(__name__)


class ModelOptions(Options):
    """A sequence-classification model and how to run it."""

    target: str = Field(min_length=1)
    """The model: a directory in Hugging Face format with safetensors, or a hub name."""
    revision: str | None = None
    """The revision of a hub model."""
    label: int | str | None = None
    """The index or name of the output to use, for a model with several."""
    output: Literal["auto", "logit", "logprob"] = "auto"
    """Whether the score is that output itself (`logit`) or, where the outputs are mutually exclusive classes, the
    log-probability of the class (`logprob`); auto follows problem_type in the model's config.json."""
    batch_size: int = Field(32, ge=1)
    """The maximum number of texts per forward pass."""
    max_length: int | None = Field(None, ge=8)
    """The number of tokens to which texts are truncated; the default is the maximum of the model."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """The device for the model: cpu, mps, cuda or cuda:N, or auto for a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the weights; auto means the checkpoint's type on a GPU and float32 elsewhere."""


class ModelReader:
    """Scores texts with the model that `options` name, in micro-batches that all callers share.

    `truncated` counts the texts that were truncated since the start, and `completions_truncated` those of them whose
    completion was truncated, too.
    """

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.version = "not loaded"
        self.truncated = self.completions_truncated = 0
        self._batches: MicroBatcher[Text, Reading] | None = None

    async def start(self) -> "SequenceModel":
        """Loads the model and returns it. Raises UserError when it cannot be loaded."""
        model, self.version = await asyncio.to_thread(self._load)
        self._batches = MicroBatcher(
            model, batch_size=self.options.batch_size, length=lambda text: len(text.text) + len(text.pair or "")
        )
        await self._batches.start()
        return model

    async def stop(self) -> None:
        if self._batches:
            await self._batches.stop()
        self._batches = None

    async def read(self, texts: Sequence["Text"]) -> list[float]:
        """Returns one number per text. Raises RewardError when the model fails."""
        if self._batches is None:
            raise RewardNotStarted("the reward model")
        try:
            readings = await self._batches.run(texts)
        except RuntimeError as error:
            raise RewardError(f"the reward model failed: {error}") from error
        self._report(readings)
        return [reading.value for reading in readings]

    def _report(self, readings: Sequence["Reading"]) -> None:
        truncated = sum(reading.truncated for reading in readings)
        completions = sum(reading.tail_truncated for reading in readings)
        if truncated:
            self.truncated += truncated
            self.completions_truncated += completions
            log.warning(
                "truncated texts to the reward model's maximum length",
                texts=len(readings),
                truncated=truncated,
                completions_truncated=completions,
            )

    def _load(self) -> tuple["SequenceModel", str]:
        try:
            from bonbon.rewards.local.sequence_model import SequenceModel
            from bonbon.rewards.local.weights import digest
        except ImportError as error:
            raise UserError(
                f"a reward model needs torch and transformers ({error}): run {install('embedded')}"
            ) from error
        options = self.options
        directory: Path = resolve_model(options.target, options.revision)
        model = SequenceModel(
            directory,
            label=options.label,
            output=options.output,
            device=options.device,
            dtype=options.dtype,
            max_length=options.max_length,
        )
        head = model.head
        reading = f"{digest(directory)} {head.label} {model.max_length} {model.model.dtype}"
        # Included only where the option changes the meaning, so that the versions of existing rewards stay the same.
        if head.label is not None and head.reads_logit != (
            model.model.config.problem_type == "multi_label_classification"
        ):
            reading += " logit" if head.reads_logit else " logprob"
        return model, sha256(reading.encode()).hexdigest()[:16]


class ClassifierReward(Reward):
    """Scores prompt and completion as a `Conversation` renders them for the model.

    Texts that exceed the model's length are truncated at the prompt's start, so completions stay whole as long as they
    fit.
    """

    name = "classifier"

    def __init__(self, options: ModelOptions) -> None:
        self.reader = ModelReader(options)
        self._conversation: Conversation | None = None

    @property
    def version(self) -> str:
        """Returns a digest of the model's files and of how they are read."""
        return self.reader.version

    @property
    def truncated(self) -> int:
        """Returns how many texts were truncated to the model's length since the start."""
        return self.reader.truncated

    async def start(self) -> None:
        tokenizer = (await self.reader.start()).tokenizer
        try:
            from bonbon.rewards.local.conversation import Conversation

            self._conversation = Conversation(tokenizer, self.reader.options.target)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await self.reader.stop()

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        if prompt.token_ids is not None:
            raise RewardError("a classifier reads text, but this prompt consists of token ids of another tokenizer")
        if self._conversation is None:
            raise RewardNotStarted("the reward model")
        return await self.reader.read([self._conversation.text(prompt, completion) for completion in completions])


def build(options: Mapping[str, Any]) -> ClassifierReward:
    """Builds the reward from ModelOptions."""
    return ClassifierReward(ModelOptions.read("classifier", options))

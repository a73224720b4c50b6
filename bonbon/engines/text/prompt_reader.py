"""Reads prompts as the policy does: renders the chat template and tokenises the text."""

import json
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from bonbon.engines.engine import Sampling, Started, Tokens, refuse_effort
from bonbon.engines.structured.call_reader import CallReader
from bonbon.engines.structured.grammar import grammar_of
from bonbon.engines.structured.tool_format import ToolParser, template_text, tool_format
from bonbon.engines.text.long_texts import check_beginning
from bonbon.engines.text.transcript import Detokenizer
from bonbon.errors import UserError
from bonbon.prompt import Message, Prompt

RESERVED = frozenset(
    {
        *("chat_template", "conversation", "max_length", "messages", "padding", "return_assistant_tokens_mask"),
        *("return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation"),
    }
)
"""Arguments of transformers' `apply_chat_template` that are not passed to the template, or that clients may not set."""


class PromptReader:
    """Turns a prompt in any of its forms into token ids, and provides what turns a completion's ids into text.

    Args:
        tokenizer: A Hugging Face tokenizer.
        vocabulary: The number of token ids that the policy knows.
        end_ids: The ids that end a completion; see `bonbon.engines.text.end_tokens`.
        tool_parser: The format in which the model writes tool calls; see `bonbon.engines.structured.tool_format`.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: int,
        end_ids: frozenset[int] = frozenset(),
        *,
        tool_parser: ToolParser = "auto",
    ) -> None:
        self._tokenizer, self._vocabulary, self.end_ids = tokenizer, vocabulary, end_ids
        self.detokenizer = Detokenizer(tokenizer)
        self.size = max(vocabulary, max(tokenizer.get_vocab().values()) + 1)
        """The number of token ids: that of the tokenizer or of the model, whichever is larger."""
        self._template = template_text(tokenizer)
        self._tool_format = tool_format(tool_parser, self._template)
        marks = [self._tool_format.start, self._tool_format.end] if self._tool_format else []
        self.writes_marks = not set(marks).isdisjoint(tokenizer.all_special_tokens)
        """Whether tool calls are delimited by special tokens, which are otherwise left out of a text."""

    def grammar(self, sampling: Sampling, prompt: Prompt) -> str | None:
        """Returns the grammar that constrains the candidates; see `grammar_of`. Raises UserError as `read` does."""
        self._check_tools(prompt)
        try:
            return grammar_of(sampling.response_format, prompt, self._tool_format, self._token_of)
        except RecursionError:
            param = "response_format" if sampling.response_format is not None else "tools"
            raise UserError(f"a schema in {param} is nested too deeply: use $defs and $ref", param=param) from None

    def call_reader(self, prompt: Prompt) -> CallReader | None:
        """Returns the reader of one candidate's tool calls, or None where all of it is text."""
        if prompt.tools is None or self._tool_format is None or prompt.tool_choice == '"none"':
            return None
        return CallReader(self._tool_format)

    def read(self, prompt: Prompt, context_length: int) -> Started:
        """Reads a prompt.

        Raises:
            UserError: The prompt cannot be read; see `Engine.draw`.
            PromptTooLong: Its beginning alone is far longer than `context_length` tokens.
        """
        text, token_ids = self._read(prompt, limit=context_length)
        return Started(token_ids or self._beginning(), text)

    def tokenize(self, prompt: Prompt, *, add_special_tokens: bool | None = None) -> Tokens:
        """Tokenises a prompt; see `Engine.tokenize`."""
        _, token_ids = self._read(prompt, special=add_special_tokens)
        return Tokens(token_ids, tuple(map(str, self._tokenizer.convert_ids_to_tokens(list(token_ids)))))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Decodes token ids; see `Engine.detokenize`."""
        return self.detokenizer.text(self._known(tuple(token_ids), param="tokens"), special=True)

    def _read(
        self, prompt: Prompt, *, special: bool | None = None, limit: int | None = None
    ) -> tuple[str, tuple[int, ...]]:
        """Returns the prompt's text and tokens.

        Args:
            special: Whether to add special tokens to them; None adds them to text prompts only.
            limit: A text that clearly has more tokens than this is refused.
        """
        if prompt.token_ids is not None:
            token_ids = self._known(prompt.token_ids)
            return self.detokenizer.text(token_ids, special=True), token_ids
        if prompt.messages is not None:
            text, special, param = self._render(prompt), bool(special), "messages"
        else:
            text, special, param = prompt.text or "", special is not False, "prompt"
        if limit is not None:
            check_beginning(self._tokenizer, text, limit, param)
        return text, self._encode(text, special=special, param=param)

    def _render(self, prompt: Prompt) -> str:
        if not self._tokenizer.chat_template:
            raise UserError(
                "the model's tokenizer has no chat template, so the model cannot read a chat; send a text prompt "
                "(/v1/completions), or add a chat_template to the tokenizer",
                param="messages",
            )
        self._check_tools(prompt)
        options = self._options(prompt)
        tools = None if prompt.tools is None else json.loads(prompt.tools)
        turns = [_turn(message) for message in prompt.messages or ()]
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, **options)
        except TemplateError as error:
            raise UserError(
                f"the model's chat template refuses the messages ({error}); change the roles or their order",
                param="messages",
            ) from error
        except Exception as error:
            raise UserError(
                f"the model's chat template cannot render the messages ({type(error).__name__}: {error}); change "
                "the messages, or correct the template in the model's directory",
                param="messages",
            ) from error
        return text

    def _check_tools(self, prompt: Prompt) -> None:
        """Raises UserError when the chat template cannot render the tools, or when its tool call format is unknown."""
        if not prompt.has_tools:
            return
        param = "messages" if prompt.tools is None else "tools"
        if not re.search(r"\btools\b|\btool_calls\b" if prompt.tools is None else r"\btools\b", self._template):
            raise UserError(
                "the model's chat template does not support tools: remove tools, and calls and their results from "
                "messages, or serve a model that calls functions",
                param=param,
            )
        if prompt.tools is not None and prompt.tool_choice != '"none"' and self._tool_format is None:
            raise UserError(
                "the model's chat template writes tool calls in an unknown format: leave tools out, or set "
                "engine_options.tool_parser to hermes, llama3_json or mistral",
                param=param,
            )

    def _token_of(self, text: str) -> int | None:
        token_id = self._tokenizer.get_vocab().get(text)
        return None if token_id is None or not 0 <= token_id < self._vocabulary else int(token_id)

    def _options(self, prompt: Prompt) -> dict[str, Any]:
        """Returns the options for rendering the chat template. Raises UserError when they are not allowed."""
        options = prompt.template_options
        if reserved := sorted(options.keys() & RESERVED):
            raise UserError(
                f"chat_template_kwargs may not set {', '.join(reserved)}: leave it out", param="chat_template_kwargs"
            )
        if "reasoning_effort" in options and "reasoning_effort" not in str(self._tokenizer.chat_template):
            refuse_effort(prompt)
            del options["reasoning_effort"]
        continues = options.get("continue_final_message", False)
        return {"add_generation_prompt": not continues} | options

    def _encode(self, text: str, *, special: bool, param: str) -> tuple[int, ...]:
        # `verbose=False` silences the tokenizer's warning about long texts: the engine checks whether the prompt fits.
        token_ids = tuple(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))
        unknown = self._unknown(token_ids)
        if unknown is not None:
            raise UserError(
                f"the prompt has the token {self._tokenizer.convert_ids_to_tokens(unknown)!r} (id {unknown}), which "
                f"the model's tokenizer knows but the model, with its {self._vocabulary} token ids, does not; leave "
                "the token out of the prompt, or serve a model whose embeddings were resized for it",
                param=param,
            )
        return token_ids

    def _known(self, token_ids: tuple[int, ...], *, param: str = "prompt") -> tuple[int, ...]:
        unknown = self._unknown(token_ids)
        if unknown is not None:
            raise UserError(
                f"token id {unknown} is not in the model's vocabulary; use ids from 0 to {self._vocabulary - 1}",
                param=param,
            )
        return token_ids

    def _unknown(self, token_ids: Sequence[int]) -> int | None:
        if not token_ids or (min(token_ids) >= 0 and max(token_ids) < self._vocabulary):
            return None
        return next(token_id for token_id in token_ids if not 0 <= token_id < self._vocabulary)

    def _beginning(self) -> tuple[int, ...]:
        if self._tokenizer.bos_token_id is None:
            raise UserError(
                "the prompt is empty and the model has no beginning-of-sequence token to start from; send some text",
                param="prompt",
            )
        return (self._tokenizer.bos_token_id,)


def _turn(message: Message) -> dict[str, Any]:
    """Returns a message in the form that chat templates expect: the arguments of calls are objects, not JSON text.

    Raises UserError when they are not valid JSON objects.
    """
    turn: dict[str, Any] = dict(message)
    if "tool_calls" in message:
        turn["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return turn


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise UserError(
            f"the arguments {text[:100]!r} of a tool call in messages are not a JSON object: correct them, or remove "
            "the call",
            param="messages",
        )
    return arguments

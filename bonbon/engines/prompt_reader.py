"""Prompts as the policy reads them."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from bonbon.engines.base import Started, Tokens, refuse_effort
from bonbon.engines.transcript import Detokenizer
from bonbon.errors import UserError
from bonbon.prompt import Prompt

RESERVED = frozenset(
    {
        *("chat_template", "conversation", "max_length", "messages", "padding", "return_assistant_tokens_mask"),
        *("return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation"),
    }
)
"""Arguments of transformers' `apply_chat_template` that are not for the template, or not for clients to choose."""


class PromptReader:
    """Turns a prompt in any of its forms into token ids, and knows what turns a completion's ids into text.

    Args:
        tokenizer: a Hugging Face tokenizer.
        vocabulary: how many token ids the policy knows.
        end_ids: the ids that end a completion; see `bonbon.engines.end_tokens`.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: frozenset[int] = frozenset()) -> None:
        self._tokenizer, self._vocabulary, self.end_ids = tokenizer, vocabulary, end_ids
        self.detokenizer = Detokenizer(tokenizer)

    def read(self, prompt: Prompt) -> Started:
        """Raises UserError when the prompt cannot be read; see `Engine.draw`."""
        text, token_ids = self._read(prompt)
        return Started(token_ids or self._beginning(), text)

    def tokenize(self, prompt: Prompt, *, add_special_tokens: bool | None = None) -> Tokens:
        """See `Engine.tokenize`."""
        _, token_ids = self._read(prompt, add_special_tokens)
        return Tokens(token_ids, tuple(map(str, self._tokenizer.convert_ids_to_tokens(list(token_ids)))))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Engine.detokenize`."""
        return self.detokenizer.text(self._known(tuple(token_ids), param="tokens"), special=True)

    def _read(self, prompt: Prompt, special: bool | None = None) -> tuple[str, tuple[int, ...]]:
        """The prompt's text and tokens. `special` adds special tokens to the text's own; None: to a text prompt's."""
        if prompt.messages is not None:
            text = self._render(prompt)
            return text, self._encode(text, special=bool(special), param="messages")
        if prompt.text is not None:
            return prompt.text, self._encode(prompt.text, special=special is not False, param="prompt")
        token_ids = self._known(prompt.token_ids or ())
        return self.detokenizer.text(token_ids, special=True), token_ids

    def _render(self, prompt: Prompt) -> str:
        if not self._tokenizer.chat_template:
            raise UserError(
                "the model's tokenizer has no chat template, so it cannot read messages; send a text prompt "
                "(/v1/completions), or add a chat_template to the tokenizer",
                param="messages",
            )
        options = self._options(prompt)
        try:
            text: str = self._tokenizer.apply_chat_template(list(prompt.messages or ()), tokenize=False, **options)
        except TemplateError as error:
            raise UserError(
                f"the model's chat template refuses these messages ({error}); change their roles or order",
                param="messages",
            ) from error
        except Exception as error:
            raise UserError(
                f"the model's chat template cannot render these messages ({type(error).__name__}: {error}); change "
                "the messages, or correct the template in the model's directory",
                param="messages",
            ) from error
        return text

    def _options(self, prompt: Prompt) -> dict[str, Any]:
        """What the chat template is rendered with. Raises UserError where that cannot be."""
        options = prompt.template_options
        if reserved := sorted(options.keys() & RESERVED):
            raise UserError(
                f"chat_template_kwargs may not have {', '.join(reserved)}: leave it out", param="chat_template_kwargs"
            )
        if "reasoning_effort" in options and "reasoning_effort" not in str(self._tokenizer.chat_template):
            refuse_effort(prompt)
            del options["reasoning_effort"]
        continues = options.get("continue_final_message", False)
        return {"add_generation_prompt": not continues} | options

    def _encode(self, text: str, *, special: bool, param: str) -> tuple[int, ...]:
        # `verbose=False`: whether the prompt fits is the engine's to say.
        token_ids = tuple(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))
        unknown = self._unknown(token_ids)
        if unknown is not None:
            raise UserError(
                f"the prompt has the token {self._tokenizer.convert_ids_to_tokens(unknown)!r} (id {unknown}), which "
                f"the model's tokenizer knows and the model does not, for it has {self._vocabulary} token ids; leave "
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
        return next((token_id for token_id in token_ids if not 0 <= token_id < self._vocabulary), None)

    def _beginning(self) -> tuple[int, ...]:
        if self._tokenizer.bos_token_id is None:
            raise UserError(
                "the prompt is empty and the model has no beginning-of-sequence token to start from; send some text",
                param="prompt",
            )
        return (self._tokenizer.bos_token_id,)

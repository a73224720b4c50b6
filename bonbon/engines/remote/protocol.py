"""Builds the requests to a vLLM server and reads its answers, as pure functions of JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from bonbon.engines.engine import (
    Delta,
    DrawRequest,
    FinishReason,
    PromptLogprobs,
    Sampling,
    Started,
    Token,
    TokenAlternative,
)
from bonbon.engines.prompt_logprobs import in_text
from bonbon.errors import EngineError
from bonbon.prompt import Message, Prompt
from bonbon.tools import ToolCallDelta

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEMPLATE_FIELDS = ("add_generation_prompt", "continue_final_message", "reasoning_effort")
"""The options of a chat template that have their own fields in a request."""
FINISHES: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort", "tool_calls": "stop"}


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """One request to a server: its path, and its body without the model's name."""

    path: str
    body: Mapping[str, Any]


def server_request(request: DrawRequest) -> ServerRequest:
    """Returns the server's request for `request`.

    It sets every field that changes the sampler, because a server takes missing ones from the model's
    generation_config.json. Greedy candidates are all the same, so it requests only one; see `events`.
    """
    prompt, sampling = request.prompt, request.sampling
    body: dict[str, Any] = {
        "n": request.n if sampling.temperature > 0 else 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "min_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignore_eos,
        "stop": list(sampling.stop),
        "stream": request.deltas,
        "return_token_ids": True,
    }
    if request.salt:
        body["cache_salt"] = request.salt
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.response_format is not None:
        body["response_format"] = json.loads(sampling.response_format)
    if sampling.seed is not None:
        body["seed"] = _seed(sampling.seed)
    if prompt.messages is None:
        body |= {"max_tokens": sampling.max_tokens, "logprobs": sampling.top_logprobs}
        return ServerRequest(
            COMPLETIONS, body | {"prompt": prompt.text if prompt.text is not None else prompt.token_ids}
        )
    body |= {"max_completion_tokens": sampling.max_tokens, "logprobs": True, "top_logprobs": sampling.top_logprobs}
    body |= {"messages": [_message(message) for message in prompt.messages], "return_prompt_text": True}
    for name, text in (("tools", prompt.tools), ("tool_choice", prompt.tool_choice)):
        if text is not None:
            body[name] = json.loads(text)
    return ServerRequest(CHAT, body | _template(prompt.template_options))


def prompt_request(token_ids: Sequence[int], request: DrawRequest) -> ServerRequest:
    """Returns the request for the log-probabilities of a prompt.

    It samples one token, because a server cannot sample none.
    """
    body: dict[str, Any] = {
        "prompt": list(token_ids),
        "max_tokens": 1,
        "prompt_logprobs": request.sampling.top_logprobs,
        "stream": False,
    }
    return ServerRequest(COMPLETIONS, body | ({"cache_salt": request.salt} if request.salt else {}))


def prompt_answer(started: Started, first: str, wanted: int, answer: Mapping[str, Any]) -> PromptLogprobs:
    """Reads a server's answer to a `prompt_request`. Raises EngineError when the answer is invalid.

    Args:
        started: The prompt.
        first: The text of its first token, which the answer does not contain.
        wanted: The number of most likely tokens to report.
    """
    try:
        positions = answer["choices"][0]["prompt_logprobs"]
        logprobs: list[float | None] = [None]
        tokens = [Token.of(first)]
        alternatives: list[tuple[TokenAlternative, ...]] = [()]
        for token_id, position in zip(started.token_ids[1:], positions[1:], strict=True):
            likeliest = sorted(position.items(), key=lambda item: -item[1]["logprob"])[:wanted]
            logprobs.append(float(position[str(token_id)]["logprob"]))
            tokens.append(Token.of(position[str(token_id)]["decoded_token"]))
            alternatives.append(
                tuple(
                    TokenAlternative(int(other), Token.of(entry["decoded_token"]), float(entry["logprob"]))
                    for other, entry in likeliest
                )
            )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"a server of the fleet sent an invalid answer: {type(error).__name__}: {str(error)[:100]}"
        ) from error
    return PromptLogprobs(started, in_text(tokens, started.text), tuple(logprobs), tuple(alternatives))


def count_request(prompt: Prompt) -> dict[str, Any]:
    """Returns the body, without the model's name, for /tokenize to report how the policy reads a text or a chat."""
    if prompt.messages is None:
        return {"prompt": prompt.text or ""}
    tools = {"tools": json.loads(prompt.tools)} if prompt.tools is not None else {}
    options = _template(prompt.template_options)
    if (effort := options.pop("reasoning_effort", None)) is not None:  # /tokenize has no such field.
        options["chat_template_kwargs"] = {**options.get("chat_template_kwargs", {}), "reasoning_effort": effort}
    return {"messages": [_message(message) for message in prompt.messages]} | tools | options


def estimate_length(prompt: Prompt) -> int:
    """Returns an upper estimate of the prompt's tokens: one per character, and some for each message."""
    if prompt.messages is None:
        return len(prompt.token_ids if prompt.token_ids is not None else prompt.text or "")
    return sum(len(message["content"]) + 16 for message in prompt.messages) + len(prompt.tools or "")


def events(request: DrawRequest, answer: Mapping[str, Any], text: str | None) -> Iterator[Started | Delta]:
    """Yields the events in a whole answer or in one chunk of a stream; `text` is the prompt's, where it is known.

    Raises EngineError when the answer is invalid.
    """
    try:
        choices = answer["choices"]
        ids = answer.get("prompt_token_ids") or (choices[0].get("prompt_token_ids") if choices else None)
        if ids:
            yield Started(tuple(ids), text if text is not None else answer["prompt_text"])
        for choice in choices:
            delta = _delta(request.sampling, choice)
            if delta is None:
                continue
            same = range(request.n) if request.sampling.temperature == 0 else (delta.index,)
            yield from (replace(delta, index=index) for index in same)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineError(
            f"a server of the fleet sent an invalid answer: {type(error).__name__}: {str(error)[:100]}"
        ) from error


def _delta(sampling: Sampling, choice: Mapping[str, Any]) -> Delta | None:
    """Returns the delta in a choice, or None for a chunk without content, such as the first one of a chat's choice."""
    token_ids, finish = tuple(choice.get("token_ids") or ()), choice.get("finish_reason")
    message = choice.get("message") or choice.get("delta") or {}
    text = choice["text"] if "text" in choice else message.get("content") or ""
    calls = tuple(_call(position, call) for position, call in enumerate(message.get("tool_calls") or ()))
    if not (token_ids or text or calls or finish):
        return None
    tokens, logprobs, alternatives = _tokens(choice.get("logprobs") or {}, sampling.top_logprobs)
    if not len(token_ids) == len(tokens) == len(logprobs):
        raise ValueError(f"{len(token_ids)} token ids with {len(logprobs)} log-probabilities")
    if finish is not None and finish not in FINISHES:
        raise EngineError(f"a server of the fleet ended a candidate with the unknown finish_reason {finish!r:.40}")
    return Delta(
        choice["index"], text, token_ids, logprobs, tokens, alternatives, FINISHES[finish] if finish else None, calls
    )


Tokens = tuple[tuple[Token, ...], tuple[float, ...], tuple[tuple[TokenAlternative, ...], ...]]


def _tokens(logprobs: Mapping[str, Any], wanted: int) -> Tokens:
    """Returns texts, log-probabilities and alternatives, from the format of either endpoint."""
    if "tokens" in logprobs:
        texts = tuple(map(Token.of, logprobs["tokens"]))
        numbers = tuple(float(number) for number in logprobs["token_logprobs"])
        likeliest = [list(position.items()) for position in logprobs["top_logprobs"]] if wanted else []
    else:
        content = logprobs.get("content") or ()
        texts = tuple(Token.of(token["token"]) for token in content)
        numbers = tuple(float(token["logprob"]) for token in content)
        likeliest = [[(o["token"], o["logprob"]) for o in token["top_logprobs"]] for token in content] if wanted else []
    return texts, numbers, tuple(_alternatives(position, wanted) for position in likeliest)


def _alternatives(position: list[tuple[str, float]], wanted: int) -> tuple[TokenAlternative, ...]:
    best = sorted(position, key=lambda pair: -pair[1])[:wanted]
    return tuple(TokenAlternative(None, Token.of(text), logprob) for text, logprob in best)


def _call(position: int, call: Mapping[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(
        call.get("index", position), call.get("id") or "", function.get("name") or "", function.get("arguments") or ""
    )


def _template(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a request that pass options to the chat template."""
    fields = {name: options[name] for name in TEMPLATE_FIELDS if name in options}
    others = {name: value for name, value in options.items() if name not in TEMPLATE_FIELDS}
    return fields | ({"chat_template_kwargs": others} if others else {})


def _message(message: Message) -> dict[str, Any]:
    content = message["content"] or (None if "tool_calls" in message else "")
    return {**message, "content": content}


def _seed(seed: int) -> int:
    """Returns a seed far from those of its neighbours, because the server seeds candidate i with seed + i."""
    return int.from_bytes(sha256(str(seed).encode()).digest()[:8], "big") >> 2

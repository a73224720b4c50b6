"""LlamaIndex's OpenAILike: run as `python check_llamaindex.py BASE_URL API_KEY`."""

import asyncio
import sys
from importlib.metadata import version

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

TURNS = [ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="Where is my order?")]


def main(url: str, key: str) -> None:
    for model in ("bonbon", "base"):
        for is_chat in (True, False):
            llm = OpenAILike(
                model=model,
                api_base=url,
                api_key=key,
                is_chat_model=is_chat,
                max_retries=0,
                max_tokens=100,
                temperature=1.0,
                additional_kwargs={"seed": 3},
            )
            answer = llm.complete("Dear customer")
            assert answer.text, answer
            assert list(llm.stream_complete("Dear customer"))[-1].text == answer.text
            answer = llm.chat(TURNS)
            assert answer.message.content, answer
            assert list(llm.stream_chat(TURNS))[-1].message.content == answer.message.content
            assert asyncio.run(llm.acomplete("Hello")).text

    # With the defaults of the class.
    assert OpenAILike(model="bonbon", api_base=url, api_key=key, is_chat_model=True).complete("Hello").text
    best = OpenAILike(
        model="bonbon", api_base=url, api_key=key, temperature=1.0, additional_kwargs={"n": 2, "best_of": 4}
    )
    assert len(best.complete("Hello").raw.choices) == 2
    print(f"llama-index-llms-openai-like {version('llama-index-llms-openai-like')}: passed")


if __name__ == "__main__":
    main(*sys.argv[1:])

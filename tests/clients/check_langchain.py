"""LangChain's ChatOpenAI and OpenAI: run as `python check_langchain.py BASE_URL API_KEY`."""

import asyncio
import sys
from importlib.metadata import version

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

TURNS = [SystemMessage("Be kind."), HumanMessage("Hello"), AIMessage("Hi"), HumanMessage("Where is my order?")]


def main(url: str, key: str) -> None:
    chat = ChatOpenAI(model="bonbon", base_url=url, api_key=key, max_retries=0, seed=3)
    answer = chat.invoke(TURNS)
    assert answer.content, answer
    assert answer.usage_metadata["output_tokens"] > 0, answer
    assert answer.response_metadata["finish_reason"] == "stop", answer
    assert chat.invoke([*TURNS, answer, HumanMessage("Go on")]).content

    for model in ("bonbon", "base"):
        streamed = ChatOpenAI(model=model, base_url=url, api_key=key, max_retries=0, seed=3, stream_usage=True)
        chunks = list(streamed.stream(TURNS))
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        assert total.content == streamed.invoke(TURNS).content, total
        assert total.usage_metadata["output_tokens"] > 0, total

    several = ChatOpenAI(model="bonbon", base_url=url, api_key=key, n=2, extra_body={"best_of": 4})
    assert len(several.generate([TURNS]).generations[0]) == 2
    bounded = chat.bind(max_tokens=3, stop=["never"], logprobs=True, top_logprobs=1).invoke(TURNS)
    assert 0 < len(bounded.response_metadata["logprobs"]["content"]) <= 3, bounded
    answers = asyncio.run(chat.abatch(["One", "Two", "Three"]))
    assert all(answer.content for answer in answers), answers

    text = OpenAI(model="bonbon", base_url=url, api_key=key, max_retries=0, max_tokens=20, best_of=3)
    assert len(text.generate(["Dear customer", "Hello"]).generations) == 2
    assert "".join(OpenAI(model="base", base_url=url, api_key=key, seed=3, streaming=True).stream("Dear customer"))

    refused = None
    try:
        chat.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]).invoke("Hello")
    except openai.BadRequestError as error:
        refused = error.param
    assert refused == "tools", refused
    print(f"langchain-openai {version('langchain-openai')} on openai {openai.__version__}: passed")


if __name__ == "__main__":
    main(*sys.argv[1:])

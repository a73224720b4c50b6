"""Text that no database can store unchanged fails no answer and is logged in a cleaned form."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import Response

from bonbon.engines.engine import Delta, DrawRequest, Started
from bonbon.errors import RewardError, UnknownVersion, UserError
from bonbon.keys.key_store import revoke_key, rotate_key
from bonbon.pairs.group_records import Feedback
from bonbon.pairs.pair_log import PairLog
from bonbon.prompt import Prompt
from bonbon.registry.registry import Registry
from bonbon.rewards.fake_reward import FakeReward
from bonbon.store.database import open_database
from bonbon.store.storable_text import NAME_LENGTH, clean_document, clean_name, clean_text
from tests.support.servers.postgresql_server import PostgresqlServer
from tests.support.servers.scripted_server import lengths, serving
from tests.support.service.fake_service import BODY, CHAT
from tests.support.service.forked_service import ForkedService
from tests.support.service.running_service import WatchedEngine, running, settings_in

STRANGE = {"NUL": "a\0b", "half a pair": "\ud800", "long": "x" * 900_000, "both": "\0\udfff" * 300, "wide": "😀" * 5000}


@pytest.fixture
def server(one_server: PostgresqlServer) -> PostgresqlServer:
    """Returns the server with an empty database."""
    one_server.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return one_server


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
async def test_a_reward_that_names_a_strange_version_once_poisons_nothing(
    server: PostgresqlServer, tmp_path: Path, strange: str
) -> None:
    def answer(version: str) -> Any:
        def answered(body: dict[str, Any]) -> Response:
            scores = [float(len(text)) for text in body["completions"]]
            return Response(json.dumps({"scores": scores, "version": version}))

        return answered

    with serving(answer("first")) as reward:
        service = ForkedService(
            tmp_path, database_url=server.url, reward={"kind": "http", "target": reward.url, "attempts": 1}
        )
        await service.start()
        async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
            asked = []
            for script in (answer("first"), answer(strange), lengths, answer("last")):
                reward.answers[:] = [script]
                response = await client.post(CHAT, json=BODY)
                assert response.status_code == 200, response.text
                asked.append(response.json()["bonbon"]["group_id"])
        assert await service.stop() == 0
    found = dict(server.rows("SELECT id, reward_version FROM groups"))
    assert found.keys() == set(asked), "logged at once, by a database that was well"
    assert found[asked[0]] == "first"
    assert found[asked[3]] == "last"
    assert len(found[asked[1]]) <= NAME_LENGTH


class StrangeReward(FakeReward):
    """A reward whose texts are all unusual; after the four scores of the initial check, every second call fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.name = self.version = text
        self.asked = 0

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        self.asked += 1
        if self.asked > 4 and self.asked % 2 == 0:
            raise RewardError(self.version)
        return await super().score(prompt, completions)


class StrangeEngine(WatchedEngine):
    """An engine whose candidates end with unusual text."""

    text = ""

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        async with aclosing(super().draw(request)) as events:
            async for event in events:
                ends = isinstance(event, Delta) and event.finish_reason is not None
                yield replace(event, text=event.text + self.text) if ends and isinstance(event, Delta) else event


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
async def test_strange_names_errors_answers_and_prompts_are_answered_and_logged(
    server: PostgresqlServer, tmp_path: Path, strange: str
) -> None:
    settings = settings_in(tmp_path).model_copy(update={"database_url": server.url})
    engine = StrangeEngine()
    # Nobody gives half a pair but rewards: requests with one are refused, and engines decode bytes.
    engine.text = strange.encode("utf-8", "replace").decode()
    prompt = engine.text[:500]
    async with running(settings, engine=engine, reward=StrangeReward(strange)) as service:
        asked = []
        for stream in (False, True):
            for user in ("user", prompt):
                response = await service.ask(
                    messages=[{"role": "user", "content": prompt}],
                    user=user,
                    metadata={"key": prompt},
                    stop=[prompt],
                    stream=stream,
                )
                assert response.status_code == 200, response.text
                last = response.text.split("\n\n")[-3].removeprefix("data: ") if stream else response.text
                asked.append(json.loads(last)["bonbon"]["group_id"])
        metrics = await service.client.get("/metrics")
        assert metrics.status_code == 200
        assert 'bonbon_groups_kept_total{where="logged"} 4.0' in metrics.text
        stored = await service.state.pair_log.group(asked[0])
        assert stored is not None
        assert len(stored.candidates[0].token_ids) > 0
        assert stored.candidates[0].text.endswith(clean_text(engine.text))
        assert (stored.reward_name, stored.reward_version) == (clean_name(strange), clean_name(strange))
    rows = server.rows("SELECT id, length(degraded) FROM groups ORDER BY id")
    assert [row[0] for row in rows] == asked
    assert all((length or 0) <= 2000 for _, length in rows)


@pytest.mark.parametrize("strange", ["a\0b", "\ud800", "x" * 64], ids=["NUL", "half a pair", "long"])
async def test_an_id_that_nobody_has_given_is_not_found(server: PostgresqlServer, tmp_path: Path, strange: str) -> None:
    async with open_database(server.url) as database:
        log = PairLog(database)
        assert await log.group(strange) is None
        with pytest.raises(UserError, match="there is no group"):
            await log.append_feedback(Feedback(strange, datetime.now(UTC), score=1.0))
        for act in (revoke_key(database, strange), rotate_key(database, strange, overlap=timedelta(0))):
            with pytest.raises(UserError, match="there is no key"):
                await act
        with pytest.raises(UnknownVersion):
            await Registry(database, tmp_path).get(strange)


def test_names_that_are_too_long_stay_different() -> None:
    one, other = clean_name("x" * 300 + "1"), clean_name("x" * 300 + "2")
    assert len(one) == len(other) == NAME_LENGTH
    assert one != other
    assert clean_name(one) == one
    assert clean_name("short\0") == "short\ufffd"
    assert clean_document({"a\0": ["\ud800", float("nan"), 1, None]}) == {"a\ufffd": ["\ufffd", None, 1, None]}

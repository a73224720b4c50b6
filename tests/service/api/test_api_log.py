"""What a request leaves in the log and the metrics, and which models it may name."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.store.tables import feedback
from service.schemas.replies import FeedbackReply, Model, ModelList
from tests.support.service.api import CHAT, MESSAGES, Api, count_groups, error_of, open_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path) as running:
        yield running


async def test_the_group_is_logged_with_all_candidates_and_who_asked(api: Api) -> None:
    response = await api.client.post(
        CHAT,
        json={
            "model": "bonbon", "messages": MESSAGES, "n": 2, "seed": 5, "user": "ada", "metadata": {"page": "help"},
            "temperature": 0.5, "max_tokens": 40, "bonbon": {"candidates": True},
        },
        headers={"x-request-id": "the-one", "x-stainless-retry-count": "2"},
    )  # fmt: skip
    extension = response.json()["bonbon"]
    group = await api.state.pair_log.group(extension["group_id"])
    assert group is not None
    assert (group.user, group.request_id, group.version, group.origin) == ("ada", "the-one", "fake", "request")
    assert group.metadata == {"page": "help", "x-stainless-retry-count": "2"}
    assert (group.sampling.temperature, group.sampling.max_tokens, group.sampling.seed) == (0.5, 40, 5)
    assert [c.text for c in group.candidates] == [c["text"] for c in extension["candidates"]]
    assert [c.index for c in group.served] == extension["chosen"]
    assert group.unclean is None


async def test_the_group_is_in_the_log_when_the_answer_comes(api: Api) -> None:
    for _ in range(3):
        body = await api.chat(seed=None)
        assert count_groups(api.state.settings.data_dir, body["bonbon"]["group_id"]) == 1


@pytest.mark.parametrize("model", ["bonbon", "base"])
@pytest.mark.parametrize("stream", [True, False])
async def test_store_false_leaves_nothing(api: Api, model: str, stream: bool) -> None:
    response = await api.post(CHAT, model=model, messages=MESSAGES, store=False, stream=stream)
    assert response.status_code == 200
    assert '"group_id":null' in response.text
    assert await api.groups() == 0


async def test_only_stored_answers_are_offered_for_audits(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[str] = []
    monkeypatch.setattr(api.state.audits, "offer", lambda group: offered.append(group.id))
    single = await api.chat(model="base")
    await api.chat(model="base", store=False)
    several = await api.chat()
    assert offered == [single["bonbon"]["group_id"], several["bonbon"]["group_id"]]


async def test_answers_are_counted(api: Api) -> None:
    body = await api.chat(n=2)
    await api.post(CHAT, model="base", messages=MESSAGES, stream=True, store=False)
    metrics = (await api.client.get("/metrics")).text
    drawn, returned = body["bonbon"]["tokens_drawn"], body["usage"]["completion_tokens"]
    assert 'bonbon_candidates_drawn_sum{asked="alias"} 8.0' in metrics
    assert 'bonbon_answers_total{asked="base",model_version="fake"} 1.0' in metrics
    assert 'bonbon_groups_logged_total{origin="request",unclean=""} 1.0' in metrics
    assert 'bonbon_time_to_first_token_seconds_count{asked="base"} 1.0' in metrics
    assert 'bonbon_time_to_first_token_seconds_count{asked="alias"}' not in metrics
    value = {
        line.split()[0]: float(line.split()[1]) for line in metrics.splitlines() if line.startswith("bonbon_tokens")
    }
    assert value['bonbon_tokens_drawn_total{asked="alias",model_version="fake"}'] == drawn
    assert value['bonbon_tokens_returned_total{asked="alias",model_version="fake"}'] == returned
    single = value['bonbon_tokens_drawn_total{asked="base",model_version="fake"}']
    assert value['bonbon_tokens_returned_total{asked="base",model_version="fake"}'] == single > 0


@pytest.mark.parametrize(
    "word",
    [
        {"score": 0.5},
        {"chosen": 3},
        {"comment": "too short"},
        {"score": -1, "chosen": 0, "comment": "…", "user": "ada"},
    ],
)
async def test_feedback_is_stored_with_its_group(api: Api, word: dict[str, Any]) -> None:
    group_id = (await api.chat())["bonbon"]["group_id"]
    response = await api.post("/v1/feedback", group_id=group_id, **word)
    assert response.status_code == 200
    assert FeedbackReply.model_validate(response.json()).group_id == group_id
    async with api.state.database.read() as connection:
        row = (await connection.execute(select(feedback))).mappings().one()
    assert row["group_id"] == group_id
    assert {key: row["end_user" if key == "user" else key] for key in word} == word


@pytest.mark.parametrize(
    ("word", "param"),
    [
        ({}, "score"),
        ({"comment": ""}, "score"),
        ({"chosen": 8}, "chosen"),
        ({"chosen": -1}, "chosen"),
        ({"score": "good"}, "score"),
        ({"score": 1, "group_id": "nothing"}, "group_id"),
        ({"score": 1, "group_id": ""}, "group_id"),
        ({"score": 1, "mood": "fine"}, "mood"),
        ({"comment": "x" * 20_001}, "comment"),
    ],
)
async def test_feedback_that_says_nothing_or_fits_nothing_is_refused(
    api: Api, word: dict[str, Any], param: str
) -> None:
    group_id = (await api.chat())["bonbon"]["group_id"]
    response = await api.post("/v1/feedback", **{"group_id": group_id, **word})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


async def test_models_are_the_names_a_request_may_use(api: Api) -> None:
    listed = ModelList.model_validate((await api.client.get("/v1/models")).json())
    names = [model.id for model in listed.data]
    assert {"bonbon", "champion", "base", "fake"} == set(names)
    for model in listed.data:
        assert Model.model_validate((await api.client.get(f"/v1/models/{model.id}")).json()) == model
        assert model.bonbon.version == "fake"
        assert (model.root, model.max_model_len) == ("fake", api.engine.context_length)
        assert (await api.chat(model=model.id))["model"] == model.id
    response = await api.client.get("/v1/models/no/such")
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


async def test_a_distilled_champion_answers_with_one_draw(api: Api) -> None:
    serving = api.state.router
    version = replace(serving.routes.loaded["fake"], name="fake-bonbon-0001", parent="fake")
    await api.engine.load(VersionFiles("fake-bonbon-0001", VersionKind.ADAPTER, Path("unused")))
    serving.publish(
        replace(serving.routes, champion=version.name, loaded={**serving.routes.loaded, version.name: version})
    )
    body = await api.chat()
    assert (body["bonbon"]["version"], body["bonbon"]["n"], len(body["choices"])) == ("fake-bonbon-0001", 1, 1)
    assert (await api.chat(n=3))["bonbon"]["n"] == 3
    assert (await api.chat(best_of=4))["bonbon"]["n"] == 4
    assert (await api.chat(model="base"))["bonbon"]["version"] == "fake"

"""Converts groups to rows of the database and back."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from bonbon.engines.engine import Sampling
from bonbon.pairs.group_records import Candidate, Group, Unclean
from bonbon.prompt import Prompt
from bonbon.tools import canonical

BESIDE_MESSAGES = ("tools", "tool_choice", "template")
"""Fields of a prompt that are stored beside its messages, as JSON text."""
COLUMNS = frozenset({"max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "response_format"})
"""Fields of `Sampling` that have their own column."""
NOT_LOGGED = frozenset({"top_logprobs"})


def prompt_document(prompt: Prompt) -> dict[str, Any]:
    """Returns the prompt as JSON: its one form by name, with its tools and template options, if any."""
    if prompt.messages is not None:
        more = {name: getattr(prompt, name) for name in BESIDE_MESSAGES}
        return {"messages": list(prompt.messages)} | {name: json.loads(text) for name, text in more.items() if text}
    if prompt.text is not None:
        return {"text": prompt.text}
    return {"token_ids": list(prompt.token_ids or ())}


def prompt_of(document: Mapping[str, Any]) -> Prompt:
    """Reverses `prompt_document`."""
    if "messages" in document:
        more = {name: canonical(document[name]) for name in BESIDE_MESSAGES if name in document}
        return Prompt(
            messages=tuple(document["messages"]),
            tools=more.get("tools"),
            tool_choice=more.get("tool_choice"),
            template=more.get("template"),
        )
    if "text" in document:
        return Prompt(text=document["text"])
    return Prompt(token_ids=tuple(document["token_ids"]))


def group_row(group: Group) -> dict[str, Any]:
    """Returns the row of table `groups`."""
    sampling = group.sampling
    return {
        "id": group.id,
        "time": group.time,
        "origin": group.origin,
        "tenant": group.tenant,
        "end_user": group.user,
        "request_id": group.request_id,
        "metadata": group.metadata,
        "prompt": prompt_document(group.prompt),
        "prompt_digest": group.prompt.digest,
        "prompt_token_ids": group.prompt_token_ids,
        "version": group.version,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
        "seed": sampling.seed,
        "response_format": sampling.response_format,
        "other_sampling": _other_sampling(sampling),
        "n": group.n,
        "reward_name": group.reward_name,
        "reward_version": group.reward_version,
        "degraded": group.degraded,
        "unclean": group.unclean,
        "idempotency": group.idempotency,
        "fingerprint": group.fingerprint,
    }


def candidate_rows(group: Group) -> list[dict[str, Any]]:
    """Returns the rows of table `candidates`."""
    return [
        {
            "group_id": group.id,
            "index": candidate.index,
            "text": candidate.text,
            "token_ids": candidate.token_ids,
            "logprob": candidate.logprob,
            "finish_reason": candidate.finish_reason,
            "reward": candidate.reward,
            "rank": candidate.rank,
            "win_probability": candidate.win_probability,
            "served": candidate.served,
        }
        for candidate in group.candidates
    ]


def group_document(group: Group) -> dict[str, Any]:
    """Returns the group as JSON."""
    row = group_row(group)
    listed = [candidate | {"token_ids": list(candidate["token_ids"])} for candidate in candidate_rows(group)]
    changed = {"time": group.time.isoformat(), "prompt_token_ids": list(group.prompt_token_ids), "candidates": listed}
    return row | changed


def group_of_document(document: Mapping[str, Any]) -> Group:
    """Reverses `group_document`. Raises ValueError, KeyError or TypeError for a document of another form."""
    changed = {
        "time": time_of(document),
        "prompt_token_ids": tuple(document["prompt_token_ids"]),
    }
    listed = [entry | {"token_ids": tuple(entry["token_ids"])} for entry in document["candidates"]]
    return group_of({**document, **changed}, listed)


def time_of(document: Mapping[str, Any]) -> datetime:
    """Returns a document's time. Raises ValueError, KeyError or TypeError when it is missing or malformed."""
    time = datetime.fromisoformat(document["time"])
    if time.tzinfo is None:
        raise ValueError("the time has no time zone")
    return time


def group_of(row: Mapping[str, Any], candidates: Iterable[Mapping[str, Any]]) -> Group:
    """Returns a group from its row and its candidates' rows, in order of their index."""
    return Group(
        id=row["id"],
        time=row["time"],
        prompt=prompt_of(row["prompt"]),
        prompt_token_ids=row["prompt_token_ids"],
        version=row["version"],
        sampling=Sampling(
            max_tokens=row["max_tokens"],
            temperature=row["temperature"],
            top_p=row["top_p"],
            top_k=row["top_k"],
            stop=tuple(row["stop"]),
            seed=row["seed"],
            response_format=row["response_format"],
            **_other_fields(row.get("other_sampling")),  # missing in groups spooled by an earlier release
        ),
        reward_name=row["reward_name"],
        reward_version=row["reward_version"],
        candidates=tuple(
            Candidate(**{field: candidate[field] for field in Candidate.__dataclass_fields__})
            for candidate in candidates
        ),
        degraded=row["degraded"],
        unclean=None if row["unclean"] is None else Unclean(row["unclean"]),
        origin=row["origin"],
        tenant=row["tenant"],
        user=row["end_user"],
        request_id=row["request_id"],
        metadata=row["metadata"],
        idempotency=row["idempotency"],
        fingerprint=row.get("fingerprint"),  # missing in groups spooled by an earlier release
    )


def _other_sampling(sampling: Sampling) -> dict[str, Any] | None:
    """Returns the fields without their own column that differ from their defaults; None when there are none."""
    changed = {
        field.name: value
        for field in fields(Sampling)
        if field.name not in COLUMNS | NOT_LOGGED and (value := getattr(sampling, field.name)) != field.default
    }
    if "logit_bias" in changed:
        changed["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return changed or None


def _other_fields(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Reverses `_other_sampling`."""
    found = dict(document or {})
    if "logit_bias" in found:
        found["logit_bias"] = tuple(sorted((int(token), bias) for token, bias in dict(found["logit_bias"]).items()))
    return found

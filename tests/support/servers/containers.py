"""docker-compose.yml and the Dockerfile, read as Docker reads them: each service with its image's configuration."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\})")


@dataclass(frozen=True)
class Image:
    """What a stage of the Dockerfile gives its containers."""

    parent: str
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    healthcheck: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    directory: str = "/"


@dataclass(frozen=True)
class Service:
    """A service of the Compose file; what it leaves out is its image's."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    healthcheck: tuple[str, ...]
    user: str
    needs: tuple[str, ...]
    grace: float
    """Seconds before it is killed."""
    raw: Mapping[str, Any]


def read_project(**variables: str) -> dict[str, Any]:
    """The Compose file with its variables filled in: `variables`, then .env.example, then the defaults."""
    variables = read_variables(ROOT / ".env.example") | variables
    project: dict[str, Any] = _filled(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), variables)
    return project


def read_services(project: Mapping[str, Any], profile: str, extra: Path | None = None) -> dict[str, Service]:
    """The services that run with `profile`, those first which others wait for; `extra` is their env_file."""
    images = read_images()
    chosen = {
        name: _service(name, raw, images, extra)
        for name, raw in project["services"].items()
        if profile in raw.get("profiles", [profile])
    }
    ordered: dict[str, Service] = {}
    while waiting := [service for name, service in chosen.items() if name not in ordered]:
        ready = [service for service in waiting if set(service.needs) <= ordered.keys()]
        assert ready, f"these wait for each other, or for what is not there: {[service.name for service in waiting]}"
        ordered |= {service.name: service for service in ready}
    return ordered


def read_images() -> dict[str, Image]:
    """Every stage of the Dockerfile, with what it has from the stages it is made of."""
    images: dict[str, Image] = {}
    name = ""
    for instruction, rest in _instructions(ROOT / "Dockerfile"):
        match instruction:
            case "FROM":
                parent, _, name = rest.split()
                images[name] = replace(images.get(parent, Image(parent)), parent=parent)
            case "ENV":
                pairs = dict(word.split("=", 1) for word in shlex.split(rest))
                images[name] = replace(images[name], environment={**images[name].environment, **pairs})
            case "USER":
                images[name] = replace(images[name], user=rest)
            case "WORKDIR":
                images[name] = replace(images[name], directory=rest)
            case "CMD":
                images[name] = replace(images[name], command=tuple(json.loads(rest)))
            case "HEALTHCHECK":
                images[name] = replace(images[name], healthcheck=tuple(json.loads(rest.partition(" CMD ")[2])))
    return images


def read_variables(file: Path) -> dict[str, str]:
    """The lines NAME=VALUE of a file of variables."""
    lines = [line.strip() for line in file.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _service(name: str, raw: Mapping[str, Any], images: Mapping[str, Image], extra: Path | None) -> Service:
    image = images[raw["build"]["target"]] if "build" in raw else Image(raw["image"])
    from_file = read_variables(extra) if extra is not None and "env_file" in raw else {}
    _, *check = raw.get("healthcheck", {}).get("test", ["CMD", *image.healthcheck])
    return Service(
        name=name,
        command=tuple(raw.get("command", image.command)),
        environment={**image.environment, **from_file, **raw.get("environment", {})},
        healthcheck=tuple(check),
        user=raw.get("user", image.user),
        needs=tuple(raw.get("depends_on", {})),
        grace=_seconds(raw.get("stop_grace_period", "10s")),
        raw=raw,
    )


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    if not isinstance(node, str):
        return node
    return _VARIABLE.sub(lambda found: _value(found, variables), node)


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found["name"] is None:
        return "$"
    if value := variables.get(found["name"]):
        return value
    assert found["kind"] != "?", f"{found['name']} is missing a value: {found['rest']}"
    return found["rest"] or ""


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", text))


def _instructions(file: Path) -> Iterator[tuple[str, str]]:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, rest = line.partition(" ")
            yield instruction, " ".join(rest.split())

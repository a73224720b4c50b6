"""The Kubernetes manifests: rendered as kustomize renders them, and held against the API's schemas and the program."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from bonbon.cli.main import app as bonbon_app
from bonbon.settings import Settings, load_settings
from service.app import create_app
from tests.support.paths import ROOT
from tests.support.service.running_service import settings_in

MANIFESTS = ROOT / "deploy" / "kubernetes"
OVERLAYS = ["overlays/cpu", "overlays/gpu", "train/cpu", "train/gpu"]
KUBERNETES = "1.34"
"""What the manifests are written for; the pause of `preStop` needs 1.30."""
SECRET = {
    "BONBON_DATABASE_URL": "postgresql+psycopg://bonbon:secret@postgresql/bonbon",
    "BONBON_SERVICE__API_KEY": "a key of the clients",
    "BONBON_SERVICE__ADMIN_KEY": "a key of the administrators",
}

Resource = dict[str, Any]


def render(overlay: str) -> list[Resource]:
    """What `kubectl apply -k` would send; skips the test where there is neither kubectl nor kustomize."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    done = subprocess.run([*command, str(MANIFESTS / overlay)], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(done.stdout))


def pods(resources: list[Resource]) -> Iterator[tuple[Resource, Resource]]:
    """Every workload with its pod's spec."""
    for resource in resources:
        spec = resource.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template is not None:
            yield resource, template["spec"]


def named(resources: list[Resource], kind: str, name: str) -> Resource:
    (found,) = (r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name))
    return found


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> list[Resource]:
    return render(request.param)


def test_every_file_parses_and_is_of_the_api() -> None:
    """Where nothing renders, too: each whole resource by itself (patches are parts of one)."""
    patches = {
        (file.parent / patch["path"]).resolve()
        for file in MANIFESTS.rglob("kustomization.yaml")
        for patch in yaml.safe_load(file.read_text()).get("patches", [])
    }
    files = [file for file in MANIFESTS.rglob("*.yaml") if file.name != "kustomization.yaml"]
    assert len(files) > len(patches) > 0
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            if file.resolve() not in patches:
                kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_rendered_resources_are_of_the_api(resources: list[Resource]) -> None:
    for resource in resources:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "bonbon"
    with pytest.raises(kubernetes_validate.ValidationError):  # the schemas do look inside
        kubernetes_validate.validate(resources[0] | {"spec": {"no such field": 1}}, KUBERNETES, strict=True)


def test_pods_run_without_rights(resources: list[Resource]) -> None:
    """As the restricted Pod Security Standard asks, which the namespace enforces."""
    for _, pod in pods(resources):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert not security["allowPrivilegeEscalation"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")


@pytest.fixture(params=["overlays/cpu", "overlays/gpu"])
def overlay(request: pytest.FixtureRequest) -> list[Resource]:
    return render(request.param)


def settings_of(overlay: list[Resource], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What a pod's program reads."""
    for name, value in (named(overlay, "ConfigMap", "bonbon")["data"] | SECRET).items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_the_configuration_is_what_the_program_reads(overlay: list[Resource], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable names a setting: dropping it from the environment changes what is read."""
    data = named(overlay, "ConfigMap", "bonbon")["data"]
    whole = settings_of(overlay, monkeypatch)
    assert whole.database == SECRET["BONBON_DATABASE_URL"]
    defaults = Settings.model_construct()
    for name in data:
        section, _, key = name.removeprefix("BONBON_").lower().partition("__")
        value = getattr(whole, section)
        assert getattr(value, key) if key else value, name
        assert value != getattr(defaults, section) or name in {"BONBON_N", "BONBON_ENGINE", "BONBON_LOOP__MIN_GROUPS"}
    if whole.engine == "remote":
        servers = named(overlay, "StatefulSet", "vllm")
        urls = [url.strip() for url in whole.engine_options["urls"].split(",")]
        assert urls == [f"http://vllm-{i}.vllm:8000" for i in range(servers["spec"]["replicas"])]


def test_gateways_drain_before_they_are_killed(overlay: list[Resource], monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = named(overlay, "Deployment", "gateway")
    pod = gateway["spec"]["template"]["spec"]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    service = settings_of(overlay, monkeypatch).service
    assert pod["terminationGracePeriodSeconds"] > pause + service.drain_timeout
    # Out of the Service before the pause is over, so that no request meets a gateway that has stopped listening.
    probe = pod["containers"][0]["readinessProbe"]
    assert gateway["spec"]["replicas"] >= 2
    assert gateway["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert named(overlay, "PodDisruptionBudget", "gateway")["spec"]["minAvailable"] >= 1
    assert probe["httpGet"]["path"] == "/health/ready"


def test_probes_ask_what_the_application_answers(
    overlay: list[Resource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = create_app(settings_in(tmp_path)).openapi()["paths"]
    port = settings_of(overlay, monkeypatch).service.port
    (container,) = named(overlay, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert "get" in paths[container[probe]["httpGet"]["path"]]
    assert named(overlay, "Service", "gateway")["spec"]["selector"] == {"app": "gateway"}


def test_commands_parse(resources: list[Resource]) -> None:
    """Up to the point where they would run."""
    from bonbon.cli.main import add_commands

    add_commands()
    group = typer.main.get_command(bonbon_app)
    commands = [
        container["command"]
        for _, pod in pods(resources)
        for container in pod["containers"]
        if container["command"][0] == "bonbon"
    ]
    assert commands
    for _, name, *arguments in commands:
        command = group.commands[name]  # type: ignore[attr-defined]
        command.make_context(name, arguments)
        with pytest.raises(Exception, match="No such option"):
            command.make_context(name, [*arguments, "--no-such-option"])


def test_servers_without_keys_are_reached_by_gateways_and_trainers_only() -> None:
    gpu = render("overlays/gpu")
    closed = named(gpu, "NetworkPolicy", "nothing")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress"]}
    policy = named(gpu, "NetworkPolicy", "vllm")["spec"]
    (servers,) = policy["podSelector"]["matchExpressions"]
    labels = {
        r["metadata"]["name"]: r["spec"]["template"]["metadata"]["labels"]
        for r, _ in pods(gpu)
        if "template" in r["spec"]
    }
    assert set(servers["values"]) == {labels["vllm"]["app"], labels["reward"]["app"]}
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchExpressions"] == [
        {"key": "app", "operator": "In", "values": ["gateway", "trainer"]}
    ]
    assert peer.keys() == {"podSelector"}  # of this namespace
    assert "egress" not in policy
    assert "Egress" in policy["policyTypes"]
    for resource in gpu:
        if resource["kind"] == "Service":
            assert resource["spec"].get("type", "ClusterIP") == "ClusterIP"
    container = named(gpu, "StatefulSet", "vllm")["spec"]["template"]["spec"]["containers"][0]
    arguments = container["args"]
    assert "--enable-lora" in arguments
    assert {"--enable-auto-tool-choice", "--tool-call-parser=$(TOOL_CALL_PARSER)"} <= set(arguments)
    assert "TOOL_CALL_PARSER" in {variable["name"] for variable in container["env"]}
    assert "--logprobs-mode=processed_logprobs" in arguments

"""The Kubernetes manifests: rendered as kustomize renders them, and held against the API's schemas and the program."""

import os
import shutil
import subprocess
import sys
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
from tests.support.needs import needs_kustomize
from tests.support.paths import DOCS, ROOT
from tests.support.service.running_service import settings_in

pytestmark = needs_kustomize

MANIFESTS = ROOT / "deploy" / "kubernetes"
OVERLAYS = ["overlays/cpu", "overlays/gpu", "train/cpu", "train/gpu", "download"]
COMPONENTS = ["ingress", "autoscaling", "monitoring"]
KUBERNETES = "1.34"
"""What the manifests are written for; the pause of `preStop` needs 1.30."""
SECRETS = ("database_password", "api_key", "admin_key", "vllm_api_key", "hf_token")
MOUNT = "/run/secrets/bonbon"

Resource = dict[str, Any]


def render(overlay: str) -> list[Resource]:
    """Returns what `kubectl apply -k` would send."""
    command = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
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
            if file.resolve() not in patches and "monitoring.coreos.com" not in document["apiVersion"]:
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
        # Only the watcher asks the API for anything.
        assert pod["automountServiceAccountToken"] is (pod.get("serviceAccountName") == "watcher")
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


def environment_of(container: Resource, resources: list[Resource], secrets: Path) -> dict[str, str]:
    """What the container's program reads; the Secret's files are in `secrets`."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= named(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", []):
        value = variable.get("value")
        if value is None:
            key = variable["valueFrom"]["configMapKeyRef"]
            value = named(resources, "ConfigMap", key["name"])["data"][key["key"]]
        values[variable["name"]] = value
    return {name: value.replace(MOUNT, str(secrets)) for name, value in values.items()}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The files of which docs/scaling.md has the Secret made: those that deploy/prepare.sh makes."""
    directory = tmp_path / "secrets"
    directory.mkdir()
    for name in SECRETS:
        (directory / name).write_text(f"the {name}")
    return directory


def settings_of(
    container: Resource, overlay: list[Resource], secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    with monkeypatch.context() as environment:
        for name, value in environment_of(container, overlay, secrets).items():
            environment.setenv(name, value)
        return load_settings()


def container_of(resources: list[Resource], kind: str, name: str) -> Resource:
    ((_, pod),) = pods([named(resources, kind, name)])
    (container,) = pod["containers"]
    return dict(container)


def test_the_configuration_is_what_the_program_reads(
    overlay: list[Resource], secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variable names a setting that differs from its default, in gateway, trainer and watcher alike."""
    models = named(overlay, "ConfigMap", "models")["data"]
    for kind, name in (("Deployment", "gateway"), ("CronJob", "trainer"), ("CronJob", "watcher")):
        container = container_of(overlay, kind, name)
        settings = settings_of(container, overlay, secrets, monkeypatch)
        assert settings.database == "postgresql+psycopg://bonbon:the database_password@postgresql:5432/bonbon"
        if name != "watcher":
            assert settings.model == models["policy"]
            assert settings.reward is not None
            assert settings.reward.target in (models["reward"], "http://reward:8000")
        defaults = Settings.model_construct()
        for variable in environment_of(container, overlay, secrets):
            section, _, key = variable.removeprefix("BONBON_").lower().removesuffix("_file").partition("__")
            if variable.startswith("BONBON_"):
                value = getattr(settings, section)
                assert getattr(value, key) if key else value, variable
                same = {"BONBON_N", "BONBON_ENGINE", "BONBON_LOOP__MIN_GROUPS"}
                assert value != getattr(defaults, section) or variable in same
    gateway = settings_of(container_of(overlay, "Deployment", "gateway"), overlay, secrets, monkeypatch)
    keys = (gateway.service.api_key, gateway.service.admin_key)
    assert [key and key.get_secret_value() for key in keys] == ["the api_key", "the admin_key"]
    if gateway.engine == "remote":
        servers = named(overlay, "StatefulSet", "vllm")
        urls = [url.strip() for url in gateway.engine_options["urls"].split(",")]
        assert urls == [f"http://vllm-{i}.vllm:8000" for i in range(servers["spec"]["replicas"])]


def test_secrets_are_files_and_no_environment_has_them(resources: list[Resource]) -> None:
    for resource, pod in pods(resources):
        assert "secretRef" not in str(pod), resource["metadata"]["name"]
        assert "secretKeyRef" not in str(pod), resource["metadata"]["name"]
        (container,) = pod["containers"]
        (volume,) = [v["secret"] for v in pod["volumes"] if "secret" in v]
        items = {item["key"] for item in volume["items"]}
        assert items <= set(SECRETS)
        assert (volume["secretName"], volume["defaultMode"]) == ("bonbon", 0o440)
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "secrets"]
        assert (mount["mountPath"], mount["readOnly"]) == (MOUNT, True)


def test_the_models_are_named_once_and_fetched_by_one_job() -> None:
    gpu = [*render("overlays/gpu"), *render("download")]
    models = named(gpu, "ConfigMap", "models")["data"]
    unused = Path("/unused")
    for kind, name, model in (("StatefulSet", "vllm", "policy"), ("Deployment", "reward", "reward")):
        container = container_of(gpu, kind, name)
        environment = environment_of(container, gpu, unused)
        assert "--model=$(MODEL)" in container["args"]
        assert environment["MODEL"] == models[model]
        assert (environment["HF_HUB_OFFLINE"], environment["HF_HOME"]) == ("1", "/data/huggingface")
    job = container_of(gpu, "Job", "download")
    environment = environment_of(job, gpu, unused)
    assert [environment[word[2:-1]] for word in job["args"]] == [models["policy"], models["reward"]]
    assert "HF_HUB_OFFLINE" not in environment
    assert environment["HF_HOME"] == "/data/huggingface"


def test_nothing_runs_or_waits_without_an_end(resources: list[Resource]) -> None:
    for resource, pod in pods(resources):
        spec, name = resource["spec"], resource["metadata"]["name"]
        assert 0 < pod["terminationGracePeriodSeconds"] <= 120, name
        if resource["kind"] == "Deployment":
            assert spec["progressDeadlineSeconds"] > 0, name
        job = spec.get("jobTemplate", {}).get("spec", spec) if resource["kind"] in ("CronJob", "Job") else None
        if job is not None:
            assert job["activeDeadlineSeconds"] > 0, name
        for volume in pod["volumes"]:
            assert volume.get("emptyDir", {"sizeLimit": "1Gi"})["sizeLimit"], name


def test_gpus_are_asked_for_only_while_something_is_trained() -> None:
    """What runs on a schedule needs none; what trains is suspended and made into a Job when a round is due."""
    gpu = render("overlays/gpu")
    for resource in gpu:
        if resource["kind"] == "CronJob" and not resource["spec"].get("suspend"):
            ((_, pod),) = pods([resource])
            assert "nvidia.com/gpu" not in str(pod), resource["metadata"]["name"]
    trainer, watcher = named(gpu, "CronJob", "trainer"), container_of(gpu, "CronJob", "watcher")
    assert trainer["spec"]["suspend"]
    assert "nvidia.com/gpu" in str(trainer)
    assert watcher["command"] == ["bonbon", "loop", "--create-job", "trainer"]
    assert watcher["image"].partition(":")[0] == "bonbon-gateway"
    account = named(gpu, "RoleBinding", "watcher")
    assert account["subjects"] == [{"kind": "ServiceAccount", "name": "watcher", "namespace": "bonbon"}]
    assert account["roleRef"]["name"] == named(gpu, "Role", "watcher")["metadata"]["name"]


def test_pods_are_held_to_a_standard_of_one_release() -> None:
    labels = named(render("overlays/cpu"), "Namespace", "bonbon")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["pod-security.kubernetes.io/enforce-version"] == f"v{KUBERNETES}"


def with_components(directory: Path, overlay: str, *components: str) -> list[Resource]:
    """An operator's own overlay, which adds components to one that ships."""

    def relative(path: str) -> str:
        return os.path.relpath(MANIFESTS / path, directory)

    own = {"resources": [relative(overlay)], "components": [relative(f"components/{name}") for name in components]}
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(own))
    return render(str(directory))


@pytest.fixture
def whole(tmp_path: Path) -> list[Resource]:
    return with_components(tmp_path, "overlays/gpu", *COMPONENTS)


def test_components_go_with_the_overlays(whole: list[Resource], tmp_path: Path) -> None:
    for resource in [*whole, *with_components(tmp_path, "overlays/cpu", *COMPONENTS)]:
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "bonbon"
        if "monitoring.coreos.com" not in resource["apiVersion"]:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_only_answers_are_reached_from_outside(whole: list[Resource]) -> None:
    (rule,) = named(whole, "Ingress", "gateway")["spec"]["rules"]
    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [("/v1", "Prefix")]
    assert named(whole, "Ingress", "gateway")["spec"]["tls"]
    (allowed,) = named(whole, "NetworkPolicy", "gateway")["spec"]["ingress"]
    label = "kubernetes.io/metadata.name"
    assert [peer["namespaceSelector"]["matchLabels"][label] for peer in allowed["from"]] == [
        "ingress-nginx",
        "monitoring",
    ]
    assert all(peer.keys() == {"namespaceSelector"} for peer in allowed["from"])


def test_gateways_scale_by_a_metric_that_they_expose(
    whole: list[Resource], secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = named(whole, "HorizontalPodAutoscaler", "gateway")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gateway"}
    (metric,) = spec["metrics"]
    assert metric["pods"]["metric"]["name"] in (DOCS / "metrics.md").read_text()
    most = settings_of(container_of(whole, "Deployment", "gateway"), whole, secrets, monkeypatch).service
    assert int(metric["pods"]["target"]["averageValue"]) == most.max_tokens_in_flight / 2
    assert spec["minReplicas"] == named(whole, "Deployment", "gateway")["spec"]["replicas"]


def test_prometheus_and_grafana_get_the_same_as_with_compose(whole: list[Resource], tmp_path: Path) -> None:
    made = tmp_path / "rules.yaml"
    subprocess.run([sys.executable, str(MANIFESTS / "prometheus_rule.py"), str(made)], check=True)
    assert made.read_text() == (MANIFESTS / "components/monitoring/rules.yaml").read_text(), "make docs writes it anew"
    services = [resource for resource in whole if resource["kind"] == "Service"]
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    for monitor in ("gateway", "vllm"):
        spec = named(whole, "ServiceMonitor", monitor)["spec"]
        (endpoint,) = spec["endpoints"]
        wanted = spec["selector"].get("matchLabels", {}).get("app")
        apps = [wanted] if wanted else spec["selector"]["matchExpressions"][0]["values"]
        for app in apps:
            (service,) = (s for s in services if s["metadata"]["labels"]["app"] == app)
            assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        assert endpoint["relabelings"][0]["replacement"] in jobs
    shown = named(whole, "ConfigMap", "dashboards")
    assert shown["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert shown["data"] == {
        file.name: file.read_text() for file in (ROOT / "deploy/grafana/dashboards").glob("*.json")
    }


def test_gateways_drain_before_they_are_killed(
    overlay: list[Resource], secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = named(overlay, "Deployment", "gateway")
    pod = gateway["spec"]["template"]["spec"]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    service = settings_of(pod["containers"][0], overlay, secrets, monkeypatch).service
    assert pod["terminationGracePeriodSeconds"] > pause + service.drain_timeout
    # Out of the Service before the pause is over, so that no request meets a gateway that has stopped listening.
    probe = pod["containers"][0]["readinessProbe"]
    assert gateway["spec"]["replicas"] >= 2
    assert gateway["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert named(overlay, "PodDisruptionBudget", "gateway")["spec"]["minAvailable"] >= 1
    assert probe["httpGet"]["path"] == "/health/ready"


def test_probes_ask_what_the_application_answers(
    overlay: list[Resource], secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = create_app(settings_in(tmp_path)).openapi()["paths"]
    container = container_of(overlay, "Deployment", "gateway")
    port = settings_of(container, overlay, secrets, monkeypatch).service.port
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert "get" in paths[container[probe]["httpGet"]["path"]]
    assert named(overlay, "Service", "gateway")["spec"]["selector"] == {"app": "gateway"}


def test_commands_parse(resources: list[Resource]) -> None:
    """Up to the point where they would run. The Job that downloads runs a script, which test_containers.py runs."""
    from bonbon.cli.main import add_commands

    add_commands()
    group = typer.main.get_command(bonbon_app)
    commands = [
        container["command"]
        for _, pod in pods(resources)
        for container in pod["containers"]
        if container["command"][0] == "bonbon"
    ]
    assert commands or named(resources, "Job", "download")
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
    peer, prometheus = rule["from"]
    assert prometheus == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
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

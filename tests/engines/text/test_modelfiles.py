"""Tests where models are found, and under which names they are served."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bonbon.errors import UserError
from bonbon.files.model_files import resolve_model, served_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model_directory(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_text("{}")
    return directory


def resolve_offline(cache: Path, name: str, revision: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs in a separate process, because huggingface_hub reads its environment when it is imported."""
    code = f"from bonbon.files.model_files import resolve_model; print(resolve_model({name!r}, {revision!r}))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = model_directory(tmp_path / "My Model", "config.json", "model-00001-of-00002.safetensors")
    assert resolve_model(str(directory)) == directory
    monkeypatch.chdir(tmp_path)
    assert resolve_model("My Model") == directory
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/My Model") == directory


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json"], "no safetensors weights"),
        (["config.json", "pytorch_model.bin"], "pickled weights are never read"),
        (["model.safetensors"], "has no config.json"),
        ([], "config.json"),
    ],
)
def test_a_directory_without_sound_files_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    directory = model_directory(tmp_path / "model", *files)
    with pytest.raises(UserError, match=message) as caught:
        resolve_model(str(directory))
    assert caught.value.param == "model"
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("name", ["./no/such/model", "/no/such", "a/b/c", "white space", "../none", "~/none"])
def test_what_is_no_directory_and_no_hub_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not an existing directory; check the path"):
        resolve_model(name)


def test_no_name_is_refused() -> None:
    with pytest.raises(UserError, match="BONBON_MODEL"):
        resolve_model("")


def test_a_hub_model_comes_from_the_cache_at_its_revision(tmp_path: Path) -> None:
    repository = tmp_path / "models--acme--tiny"
    snapshot = model_directory(repository / "snapshots" / COMMIT, "config.json", "model.safetensors")
    refs = repository / "refs"
    refs.mkdir()
    for name in ("main", "v2"):
        (refs / name).write_text(COMMIT)
    for revision in (None, "v2", COMMIT):
        found = resolve_offline(tmp_path, "acme/tiny", revision)
        assert found.stdout.strip() == str(snapshot), found.stderr
    missing = resolve_offline(tmp_path, "acme/tiny", "v3")
    assert missing.returncode
    assert "check the name, the revision, the network and HF_TOKEN" in missing.stderr


def test_a_hub_model_that_cannot_be_fetched_is_refused(tmp_path: Path) -> None:
    failed = resolve_offline(tmp_path, "acme/none")
    assert failed.returncode
    assert "UserError: model 'acme/none' is neither an existing directory nor a hub model" in failed.stderr


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("/models/Llama 3 (chat)/", "llama-3-chat"),
        ("tiny", "tiny"),
        ("./a/../Some_Model", "some_model"),
    ],
)
def test_served_names_are_the_last_part_in_lower_case(model: str, name: str) -> None:
    assert served_name(model) == name


def test_a_directory_named_by_a_dot_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Tiny").mkdir()
    monkeypatch.chdir(tmp_path / "Tiny")
    assert served_name(".") == "tiny"
    assert served_name("") == "tiny"


def test_a_name_without_letters_is_refused() -> None:
    with pytest.raises(UserError, match="rename its directory"):
        served_name("/")


def test_importing_it_loads_no_model_library() -> None:
    code = (
        "import sys, json, bonbon.files.model_files, bonbon.engines, bonbon.engines.embedded.embedded_engine;"
        "print(json.dumps([m for m in ('torch', 'transformers', 'peft', 'huggingface_hub') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []

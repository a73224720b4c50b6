"""Settings: their sources, the precedence of sources, and the messages about invalid values."""

import re
from pathlib import Path
from typing import Any

import pytest

from bonbon.cli.settings_reference import reference
from bonbon.engines.remote.remote_options import RemoteOptions
from bonbon.errors import UserError
from bonbon.settings import RewardSpec, Settings, load_settings
from tests.support.paths import DOCS


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without bonbon.toml."""
    monkeypatch.chdir(tmp_path)


def set_all(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    settings = load_settings()
    assert (settings.model, settings.n, settings.engine, settings.reward) == ("", 8, "embedded", None)
    assert (settings.service.host, settings.service.port) == ("127.0.0.1", 8080)
    assert settings.database == f"sqlite+aiosqlite:///{tmp_path}/data/bonbon.db"
    assert (settings.versions_dir, settings.runs_dir) == (tmp_path / "data" / "versions", tmp_path / "data" / "runs")


def test_arguments_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bonbon.toml").write_text(
        'model = "file"\nn = 2\nengine = "fake"\n[service]\nport = 1\nhost = "file"\nalias = "file"\n'
        "[gate]\nlength_ratio = [0.25, 4.0]\n"
    )
    set_all(monkeypatch, BONBON_MODEL="environment", BONBON_N="3", BONBON_SERVICE__PORT="2")
    monkeypatch.setenv("BONBON_SERVICE__HOST", "environment")
    settings = load_settings(model="argument", data_dir=None, service={"port": 3})
    assert (settings.model, settings.n, settings.engine) == ("argument", 3, "fake")
    service = settings.service
    assert (service.port, service.host, service.alias) == (3, "environment", "file")
    assert settings.gate.length_ratio == (0.25, 4.0)


def test_the_file_can_be_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bonbon.toml").write_text("n = 2\n")
    (tmp_path / "other.toml").write_text('n = 5\n[reward]\nkind = "length"\ntarget_length = 40\n')
    monkeypatch.setenv("BONBON_CONFIG", "other.toml")
    settings = load_settings()
    assert settings.n == 5
    assert settings.reward is not None
    assert (settings.reward.kind, settings.reward.options) == ("length", {"target_length": 40})


def test_the_environment_can_give_objects_and_parts_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(
        monkeypatch,
        BONBON_ENGINE_OPTIONS='{"delay": 0.5}',
        BONBON_REWARD='{"kind": "judge", "target": "http://judge"}',
        BONBON_HELD_OUT_REWARD="fake:",
        BONBON_TRAIN__LOSS="ipo",
        bonbon_gate__min_win_rate="0.6",
    )
    settings = load_settings()
    assert settings.engine_options == {"delay": 0.5}
    assert settings.reward == RewardSpec(kind="judge", target="http://judge")
    assert settings.held_out_reward == RewardSpec(kind="fake")
    assert (settings.train.loss, settings.gate.min_win_rate) == ("ipo", 0.6)


@pytest.mark.parametrize(
    ("shorthand", "kind", "target"),
    [
        ("http://reward:9000/score", "http", "http://reward:9000/score"),
        ("https://reward/score", "http", "https://reward/score"),
        ("python:my.module:score", "python", "my.module:score"),
        ("length:", "length", ""),
        ("models/reward", "classifier", "models/reward"),
        ("org/reward-model", "classifier", "org/reward-model"),
        ("./odd:name", "classifier", "./odd:name"),
    ],
)
def test_a_reward_can_be_named_in_a_word(shorthand: str, kind: str, target: str) -> None:
    spec = Settings(reward=shorthand).reward
    assert spec is not None
    assert (spec.kind, spec.target) == (kind, target)
    assert spec.options == ({"target": target} if target else {})


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("modle = 'tiny'", "settings: modle: there is no such setting"),
        ("[service]\nprot = 1", "settings: service.prot: there is no such setting"),
        ("[serivce]\nport = 1", "settings: serivce: there is no such setting"),
        ("n = 1", "settings: n = 1: Input should be greater than or equal to 2"),
        ("n = 'many'\n[train]\nloss = 'mse'", "settings: n = 'many': .*; train.loss = 'mse': .*'bonbon'"),
        ("n = ", "settings: bonbon.toml is not valid TOML: Invalid value"),
        ("reward = {target = 'x'}", r"settings: reward\.kind is required"),
    ],
)
def test_a_bad_file_is_named_key_by_key(tmp_path: Path, toml: str, message: str) -> None:
    (tmp_path / "bonbon.toml").write_text(toml)
    with pytest.raises(UserError, match=message):
        load_settings()


def test_a_file_in_another_encoding_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "bonbon.toml").write_bytes('model = "café"'.encode("latin-1"))
    with pytest.raises(UserError, match=r"bonbon\.toml is not valid TOML"):
        load_settings()


def test_a_named_file_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONBON_CONFIG", "gone.toml")
    with pytest.raises(UserError, match=r"BONBON_CONFIG is 'gone.toml', but there is no such file"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("BONBON_MODLE", "tiny", "BONBON_MODLE: there is no such setting"),
        ("BONBON_SERVICE_PORT", "80", "BONBON_SERVICE_PORT: .* two underscores, as in BONBON_SERVICE__PORT"),
        ("BONBON_SERVICE__PROT", "80", "service.prot: there is no such setting"),
        ("bonbon_modle", "tiny", "bonbon_modle: there is no such setting"),
        ("BONBON_SERVICE__PORT", "high", "service.port = 'high': Input should be a valid integer"),
        ("BONBON_ENGINE_OPTIONS", "{delay: 1}", 'settings: .*"engine_options".*; write lists and objects as JSON'),
    ],
)
def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        load_settings()


def test_the_variables_that_kubernetes_makes_of_a_service_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {
        "BONBON_PORT": "tcp://10.0.0.7:8080",
        "BONBON_PORT_8080_TCP_ADDR": "10.0.0.7",
        "BONBON_SERVICE_HOST": "10.0.0.7",
        "BONBON_SERVICE_PORT": "8080",
        "BONBON_SERVICE_PORT_HTTP": "8080",
        "BONBON_POSTGRES_SERVICE_HOST": "10.0.0.8",
    }
    set_all(monkeypatch, KUBERNETES_SERVICE_HOST="10.0.0.1", **links)
    assert load_settings().service.port == 8080
    monkeypatch.setenv("BONBON_MODLE", "tiny")
    with pytest.raises(UserError, match="settings: BONBON_MODLE: there is no such setting"):
        load_settings()
    monkeypatch.delenv("BONBON_MODLE")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(UserError, match=r"BONBON_PORT, .*BONBON_SERVICE_PORT"):
        load_settings()


@pytest.mark.parametrize("toml", ["[service]\nadmin_key = 4711", "[service]\nadminkey = '4711'"])
def test_no_key_is_shown(tmp_path: Path, toml: str) -> None:
    (tmp_path / "bonbon.toml").write_text(toml)
    with pytest.raises(UserError, match=r"service\.admin") as refusal:
        load_settings()
    assert "4711" not in str(refusal.value)
    (tmp_path / "bonbon.toml").write_text("[service]\napi_key = '4711'")
    assert "4711" not in repr(load_settings())


@pytest.mark.parametrize("change", [{"n": 4}, {"service": None}])
def test_settings_do_not_change(change: dict[str, Any]) -> None:
    settings = load_settings()
    for name, value in change.items():
        with pytest.raises(ValueError, match="frozen"):
            setattr(settings, name, value)


def test_a_value_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"key": "secret\n", "n": "5", "options": '{"delay": 1}\n', "password": "p@ss/word"}.items():
        (tmp_path / name).write_text(text)
    set_all(monkeypatch, BONBON_SERVICE__API_KEY_FILE="key", BONBON_N_FILE="n", bonbon_engine_options_file="options")
    set_all(monkeypatch, BONBON_DATABASE_PASSWORD_FILE="password", BONBON_SERVICE__PORT="7")
    monkeypatch.setenv("BONBON_DATABASE_URL", "postgresql+psycopg://bonbon@db:5432/bonbon")
    settings = load_settings()
    assert settings.service.api_key is not None
    assert settings.service.api_key.get_secret_value() == "secret"
    assert (settings.n, settings.engine_options, settings.service.port) == (5, {"delay": 1}, 7)
    assert settings.database == "postgresql+psycopg://bonbon:p%40ss%2Fword@db:5432/bonbon"
    assert "p@ss" not in repr(settings)


def test_a_file_that_cannot_be_read_is_named_and_its_text_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BONBON_SERVICE__API_KEY_FILE", "gone")
    with pytest.raises(UserError, match="BONBON_SERVICE__API_KEY_FILE = 'gone' cannot be read: No such file"):
        load_settings()
    (tmp_path / "gone").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="it is not text"):
        load_settings()
    (tmp_path / "gone").write_text("secret")
    monkeypatch.setenv("BONBON_SERVICE__API_KEY", "another")
    with pytest.raises(UserError, match="both BONBON_SERVICE__API_KEY and BONBON_SERVICE__API_KEY_FILE") as refusal:
        load_settings()
    assert "secret" not in str(refusal.value)


def test_an_empty_key_is_refused_and_not_asked_of_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("\n")
    monkeypatch.setenv("BONBON_SERVICE__API_KEY_FILE", "key")
    with pytest.raises(UserError, match="BONBON_SERVICE__API_KEY_FILE = 'key' is empty: write the value into the file"):
        load_settings()
    monkeypatch.delenv("BONBON_SERVICE__API_KEY_FILE")
    for name in ("API_KEY", "ADMIN_KEY"):
        monkeypatch.setenv(f"BONBON_SERVICE__{name}", "")
        with pytest.raises(
            UserError, match=rf"service\.{name.lower()}: .*the key is empty, so no request could match it"
        ):
            load_settings()
        monkeypatch.delenv(f"BONBON_SERVICE__{name}")


def test_a_file_for_what_is_no_setting_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "value").write_text("1")
    monkeypatch.setenv("BONBON_NO_SUCH_FILE", "value")
    with pytest.raises(UserError, match="BONBON_NO_SUCH_FILE: there is no such setting"):
        load_settings()
    monkeypatch.delenv("BONBON_NO_SUCH_FILE")
    monkeypatch.setenv("BONBON_SERVICE__NO_SUCH_FILE", "value")
    with pytest.raises(UserError, match=r"service\.no_such: there is no such setting"):
        load_settings()


def test_the_password_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, BONBON_DATABASE_URL="postgresql+psycopg://a:b@db/c", BONBON_DATABASE_PASSWORD="secret")
    with pytest.raises(UserError, match="remove one of them") as refusal:
        _ = load_settings().database
    assert "secret" not in str(refusal.value)


def test_a_key_of_a_server_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RemoteOptions(urls="http://vllm:8000", api_key_env="VLLM_API_KEY")
    with pytest.raises(UserError, match="is not set"):
        _ = options.bearer
    (tmp_path / "key").write_text("secret\n")
    monkeypatch.setenv("VLLM_API_KEY_FILE", "key")
    assert options.bearer == "secret"


def test_every_setting_is_listed_as_it_is() -> None:
    page = reference()
    assert (DOCS / "settings.md").read_text() == page, "make docs writes it anew"
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    names = {row[0].strip("| `") for row in rows}
    assert {"model", "database_password", "service.port", "service.limits.tokens_per_minute", "loop.poll"} <= names
    for row in rows:
        assert len(row) == 4, row
        assert row[3].strip(" |"), f"{row[0]} has no description"


def test_every_variable_that_the_documents_name_is_a_setting() -> None:
    """All pages and manifests are checked, so that no renamed setting remains in one of them."""
    listed = set(re.findall(r"^\| `([\w.]+)`", (DOCS / "settings.md").read_text(), re.MULTILINE))
    known = {name.upper().replace(".", "__") for name in listed} | {"CONFIG"}
    root = DOCS.parent
    pages = [root / "README.md", *DOCS.glob("*.md"), *(root / "deploy").rglob("*.yaml"), *root.glob("docker-compose*")]
    for page in pages:
        for name in re.findall(r"\bBONBON_([A-Z][A-Z_]+[A-Z])\b", page.read_text()):
            assert name.removesuffix("_FILE") in known, f"{page.name}: BONBON_{name}"


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://app.example.com/", "https://app.example.com/chat", "https://"]
)
def test_an_origin_that_no_browser_would_send_is_refused(origin: str) -> None:
    with pytest.raises(UserError, match=r"service\.cors_origins.*such as https://app\.example\.com"):
        load_settings(service={"cors_origins": ["*", origin]})


def test_origins_are_compared_as_browsers_write_them() -> None:
    settings = load_settings(service={"cors_origins": ["*", "https://App.example.com", "http://localhost:3000"]})
    assert settings.service.cors_origins == ["*", "https://app.example.com", "http://localhost:3000"]

"""Tests of versions that are exported, imported elsewhere and loaded by other programs, on tiny models."""

import asyncio
import json
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bonbon.cli.models_cli import app
from bonbon.engines.candidates import collect
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import DrawRequest, Sampling, VersionFiles, VersionKind
from bonbon.files.manifest import make_manifest, verify
from bonbon.registry.registry import Registry
from bonbon.registry.transfer.exported_version import BESIDE
from bonbon.registry.version_records import Version, VersionState
from bonbon.settings import Settings
from bonbon.store.database import open_database
from tests.support.data.stores import as_json, refusal, run
from tests.support.models.engine_models import PROMPT, logprobs, reference, save_adapter, save_model
from tests.support.paths import DOCS

ESTIMATE = {"value": 0.75, "low": 0.7, "high": 0.8, "count": 100, "clusters": 50}
EVALUATION: dict[str, Any] = {
    "n": 8, "prompts": 50, "reward": "helpful", "served": "base", "served_k": 8, "win_rate": ESTIMATE,
    "best_of_k": [{"k": 3, "win_rate": ESTIMATE, "win_rate_served": ESTIMATE}],
    "kl": ESTIMATE | {"value": 0.5}, "kl_estimator": "Rao-Blackwellised per-token", "kl_k1": ESTIMATE,
}  # fmt: skip
TRAINING = {
    "start": "base", "run": "runs/secret", "groups": 100, "last_group": "f" * 32, "held_out_fraction": 0.2,
    "settings": {"loss": "gvpo", "method": "lora", "tenants": ["acme"]},
}  # fmt: skip


def settings_in(directory: Path) -> Settings:
    directory.mkdir(exist_ok=True)
    return Settings(data_dir=directory)


def register(data_dir: Path, base: Path | None, files: Path, kind: VersionKind = VersionKind.ADAPTER) -> Version:
    return asyncio.run(_register(data_dir, base, files, kind))


async def _register(data_dir: Path, base: Path | None, files: Path, kind: VersionKind) -> Version:
    settings = settings_in(data_dir)
    async with open_database(settings.database) as database:
        registry = Registry(database, settings.versions_dir)
        await registry.register_base("base", base)
        version = await registry.register(
            base="base", parent="base", kind=kind, directory=files, training=TRAINING, evaluation=EVALUATION
        )
        return await registry.approve(version.name, {"passed": True, "reasons": [], "k": 3, "saved": 0.6})


def versions(data_dir: Path) -> tuple[list[Version], dict[str, str]]:
    async def read() -> tuple[list[Version], dict[str, str]]:
        settings = settings_in(data_dir)
        async with open_database(settings.database) as database:
            registry = Registry(database, settings.versions_dir)
            return await registry.list(), await registry.aliases()

    return asyncio.run(read())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_model(tmp_path_factory.mktemp("models") / "base")
    GenerationConfig(eos_token_id=2, temperature=0.7, do_sample=True).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_adapter(tmp_path_factory.mktemp("trained") / "adapter", base, 1)
    (directory / "README.md").unlink()  # as the trainer saves it
    return directory


@pytest.fixture
def version(base: Path, adapter: Path, tmp_path: Path) -> Version:
    """A version in tmp_path/data that the gate passed with k = 3."""
    return register(tmp_path / "data", base, adapter)


def front_matter(directory: Path) -> dict[str, Any]:
    _, header, _ = (directory / "README.md").read_text().split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(header)
    return found


def test_an_exported_adapter_has_its_files_and_says_what_it_is(version: Version, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = as_json(app, "export", version.name, "--out", out, "--data-dir", tmp_path / "data")
    assert (told["directory"], told["version"], told["kind"]) == (str(out), version.name, "adapter")
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "bonbon.json", "evaluation.json"]
    assert {*names, "manifest.json"} == {path.name for path in out.iterdir()}
    assert told["digest"] == version.digest
    verify(out, version.digest, BESIDE)
    card = front_matter(out)
    assert (card["base_model"], card["library_name"]) == ("base", "peft")
    assert (card["bonbon"]["k"], card["bonbon"]["method"]) == (3, "gvpo, lora")
    assert card["bonbon"]["win_rate"] == {"value": 0.75, "low": 0.7, "high": 0.8}
    assert (card["bonbon"]["kl"]["value"], card["bonbon"]["kl_estimator"]) == (0.5, "Rao-Blackwellised per-token")
    text = (out / "README.md").read_text()
    assert "--max-lora-rank 8" in text
    assert "| KL from the base, nats | 0.500 | 0.700 to 0.800 | Rao-Blackwellised per-token |" in text
    assert "draw 3 answers for each prompt" in text
    assert json.loads((out / "evaluation.json").read_text()) == EVALUATION
    record = json.loads((out / "bonbon.json").read_text())
    assert record["training"]["settings"] == {"loss": "gvpo", "method": "lora"}  # and no tenant's name
    assert "run" not in record["training"]


async def served(base: Path, adapter: Path) -> tuple[tuple[int, ...], torch.Tensor]:
    """Returns tokens that the embedded engine drew from the adapter, with their log-probabilities."""
    engine = EmbeddedEngine("base", base, EmbeddedOptions(threads=1))
    await engine.start()
    await engine.load(VersionFiles("v", VersionKind.ADAPTER, adapter))
    request = DrawRequest(PROMPT, "v", sampling=Sampling(max_tokens=24, seed=1, ignore_eos=True))
    (draw,) = (await collect(engine, request)).draws
    await engine.stop()
    return tuple(draw.token_ids), torch.tensor(draw.logprobs)


def test_merged_weights_have_the_log_probabilities_of_the_served_adapter(
    version: Version, base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    printed = run(app, "export", version.name, "--merged", "--out", out, "--data-dir", tmp_path / "data").stdout
    assert f"{version.name} was written to {out} as full weights" in printed
    tokens, drawn = asyncio.run(served(base, adapter))
    assert len(tokens) == 24
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    distribution = logprobs(model, PROMPT.token_ids or (), tokens)
    assert torch.allclose(distribution.gather(1, torch.tensor(tokens)[:, None]).squeeze(1), drawn, atol=1e-4)
    without = logprobs(reference(base), PROMPT.token_ids or (), tokens)
    assert (without.gather(1, torch.tensor(tokens)[:, None]).squeeze(1) - drawn).abs().max() > 0.05
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert GenerationConfig.from_pretrained(out).temperature == 0.7
    card = front_matter(out)
    assert (card["library_name"], card["base_model_relation"]) == ("transformers", "finetune")
    assert "merged into `base`" in (out / "README.md").read_text()
    assert (out / "model.safetensors").stat().st_mode & 0o444 == 0o444


def test_an_export_overwrites_nothing_and_leaves_nothing_behind(version: Version, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    export = ("export", version.name, "--data-dir", tmp_path / "data", "--out")
    assert refusal(app, *export, out) == f"{out} already exists: name another --out, or delete it first"
    assert refusal(app, *export, out / "mine").startswith(f"{out}/mine already exists")
    assert (out / "mine").read_text() == "kept"
    weights = version.directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "truncated or changed" in refusal(app, *export, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}


def test_what_cannot_be_exported_is_refused(version: Version, base: Path, tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data", "--out", tmp_path / "out")
    assert refusal(app, "export", "base", *data) == (f"base is a base model, not a version of one: copy {base} itself")
    assert "there is no version 'gone'" in refusal(app, "export", "gone", *data)
    whole = register(tmp_path / "data", base, base, VersionKind.FULL)
    assert refusal(app, "export", whole.name, "--merged", *data) == (
        f"{whole.name} already has whole weights: export it without --merged"
    )
    assert as_json(app, "export", whole.name, *data)["kind"] == "full"


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_on_shared_embeddings_is_merged_into_weights_of_its_own(module: str, tmp_path: Path) -> None:
    """Otherwise merging an adapter on the input would change the output as well."""
    base = save_model(tmp_path / "tied", tied=True)
    adapter = save_adapter(tmp_path / "adapter", base, 1, target_modules=["q_proj", module])
    version, out = register(tmp_path / "data", base, adapter), tmp_path / "merged"
    as_json(app, "export", version.name, "--merged", "--out", out, "--data-dir", tmp_path / "data")
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert not merged.config.tie_word_embeddings
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert not torch.allclose(merged(ids).logits, AutoModelForCausalLM.from_pretrained(base)(ids).logits, atol=0.1)
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-3, atol=1e-3)


def test_a_base_that_is_gone_or_was_never_here_cannot_be_merged_into(adapter: Path, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    export = ("--merged", "--out", tmp_path / "o", "--data-dir")
    remote = register(tmp_path / "remote", None, adapter)
    assert "were never on this machine" in refusal(app, "export", remote.name, *export, tmp_path / "remote")
    version = register(tmp_path / "data", base, adapter)
    base.rename(tmp_path / "elsewhere")
    assert "is not in" in refusal(app, "export", version.name, *export, tmp_path / "data")


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_what_was_exported_is_registered_elsewhere(version: Version, base: Path, tmp_path: Path, merged: bool) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    as_json(app, "export", version.name, *(("--merged",) * merged), "--out", out, "--data-dir", tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    other = shutil.copytree(base, tmp_path / "Another-Name")
    told = as_json(app, "import", out, "--model", other, "--data-dir", there)
    found, aliases = versions(there)
    imported = next(one for one in found if one.kind is not VersionKind.BASE)
    assert told["name"] == imported.name == f"another-name-bonbon-0001-{imported.digest[:8]}"
    assert (imported.state, aliases) == (VersionState.REGISTERED, {})
    assert imported.kind is (VersionKind.FULL if merged else VersionKind.ADAPTER)
    assert imported.directory == there / "versions" / imported.digest
    assert {path.name for path in imported.directory.iterdir()} == {path.name for path in out.iterdir()} - {
        "README.md",
        "bonbon.json",
        "evaluation.json",
    }
    verify(imported.directory, imported.digest)
    assert imported.evaluation["win_rate"] == ESTIMATE
    assert imported.evaluation["imported"]["version"] == version.name
    assert imported.training["held_out_fraction"] == 0.2
    assert "last_group" not in imported.training
    assert imported.training["imported"]["training"]["last_group"] == "f" * 32
    assert imported.k == 3
    printed = run(app, "show", imported.name, "--data-dir", there).stdout
    assert f"from {version.name}; its figures were measured there" in printed
    assert "the gate of the installation that made it passed it to answer with best-of-3" in printed
    assert "not approved" in refusal(app, "promote", imported.name, "--data-dir", there)
    as_json(app, "export", imported.name, "--out", tmp_path / "again", "--data-dir", there)
    first, second = (json.loads((directory / "bonbon.json").read_text()) for directory in (out, tmp_path / "again"))
    assert all(first[key] == second[key] for key in ("digest", "base_digest", "training", "verdict", "k"))
    assert (tmp_path / "again" / "evaluation.json").read_text() == (out / "evaluation.json").read_text()
    again = refusal(app, "import", out, "--data-dir", there)
    assert again == f"{out} is already registered as {imported.name}"


def test_an_import_may_be_given_a_name(version: Version, base: Path, tmp_path: Path) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    as_json(app, "export", version.name, "--out", out, "--data-dir", tmp_path / "data")
    arguments = ("import", out, "--model", base, "--data-dir", there, "--name")
    assert "lower-case letters" in refusal(app, *arguments, "../Evil")
    assert as_json(app, *arguments, "support-v2")["name"] == f"support-v2-{version.digest[:8]}"


def test_another_base_is_refused(version: Version, tmp_path: Path) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    as_json(app, "export", version.name, "--out", out, "--data-dir", tmp_path / "data")
    other = save_model(tmp_path / "base", seed=7)
    said = refusal(app, "import", out, "--model", other, "--data-dir", there)
    assert said.startswith(f"{version.name} was trained on base, digest ")
    assert "another model: import it where that base is served" in said
    assert [one.name for one in (versions(there))[0]] == ["base"]


def test_an_import_needs_the_files_of_a_base(version: Version, adapter: Path, tmp_path: Path) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    as_json(app, "export", version.name, "--out", out, "--data-dir", tmp_path / "data")
    assert refusal(app, "import", out, "--data-dir", there).startswith("there is no database")
    register(there, None, adapter)
    said = refusal(app, "import", out, "--data-dir", there)
    assert "no base model that is registered here (there is: base) is known to be base" in said
    assert "with --model" in said


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("adapter_model.safetensors", "x", "truncated or changed"),
        ("bonbon.json", "[]", "is not a JSON object"),
        ("bonbon.json", '{"format": 9}', "has a format that this release does not know"),
        ("bonbon.json", '{"format": 1}', "export the version again"),
        ("evaluation.json", '{"win_rate": "high"}', "figures that are not numbers"),
        ("evaluation.json", '{"best_of_k": [3]}', "figures that are not numbers"),
        ("evaluation.json", '{"best_of_k": [{"k": true}]}', "figures that are not numbers"),
        ("evaluation.json", '{"truncated": [1]}', "figures that are not numbers"),
        ("evaluation.json", '{"kl": {"value": NaN}}', "figures that are not numbers"),
        ("evaluation.json", '{"served_k": "x"}', "figures that are not numbers"),
        ("evaluation.json", "{", "cannot be read"),
        ("evaluation.json", '{"a": ' * 9000, "cannot be read"),
        ("more.pkl", "x", "files can contain code"),
        ("more.json", "{}", "is not in the manifest"),
    ],
)
def test_a_damaged_export_is_not_registered(
    version: Version, base: Path, tmp_path: Path, file: str, text: str, said: str
) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    as_json(app, "export", version.name, "--out", out, "--data-dir", tmp_path / "data")
    (out / file).write_text(text)
    assert said in refusal(app, "import", out, "--model", base, "--data-dir", there)
    assert all(one.kind is VersionKind.BASE for one in (versions(there))[0])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("version", "x[/red]", "which is not a valid version name"),
        ("kind", "base", "holds an adapter, but its bonbon.json records kind = base"),
        ("kind", "full", "holds an adapter, but its bonbon.json records kind = full"),
        ("training", {"settings": [1]}, "figures that are not numbers"),
        ("verdict", {"reasons": [1]}, "figures that are not numbers"),
    ],
)
def test_a_record_that_cannot_be_is_refused(
    version: Version, base: Path, tmp_path: Path, field: str, value: Any, said: str
) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    as_json(app, "export", version.name, "--out", out, "--data-dir", tmp_path / "data")
    record = json.loads((out / "bonbon.json").read_text())
    (out / "bonbon.json").write_text(json.dumps(record | {field: value}))
    assert said in refusal(app, "import", out, "--model", base, "--data-dir", there)
    (out / "manifest.json").write_text("[5]")
    digest = sha256(b"[5]").hexdigest()
    (out / "bonbon.json").write_text(json.dumps(record | {"digest": digest}))
    assert "is not a manifest" in refusal(app, "import", out, "--model", base, "--data-dir", there)


def test_more_draws_than_a_service_could_make_are_not_imported(version: Version, base: Path, tmp_path: Path) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    as_json(app, "export", version.name, "--out", out, "--data-dir", tmp_path / "data")
    record = json.loads((out / "bonbon.json").read_text())
    (out / "bonbon.json").write_text(json.dumps(record | {"verdict": {"passed": True, "k": 10**9, "reasons": []}}))
    assert as_json(app, "import", out, "--model", base, "--data-dir", there)["k"] == 1


def test_a_distillation_is_imported_from_its_directory(version: Version, base: Path, tmp_path: Path) -> None:
    """The output of `bonbon distill` is a data directory with the registered version."""
    out, there = tmp_path / "data", tmp_path / "there"
    (out / "distill.json").write_text("{}")
    assert "has not finished" in refusal(app, "import", out, "--model", base, "--data-dir", there)
    (out / "registered.json").write_text(json.dumps({"version": version.name, "passed": True}))
    told = as_json(app, "import", out, "--model", base, "--data-dir", there)
    assert (told["digest"], told["k"], told["state"]) == (version.digest, 3, "registered")
    assert make_manifest(there / "versions" / version.digest).digest == version.digest


def test_other_directories_are_refused(base: Path, tmp_path: Path) -> None:
    said = refusal(app, "import", base, "--model", base, "--data-dir", tmp_path)
    assert said == (
        f"{base} has no bonbon.json: give a directory that `bonbon models export` or `bonbon distill --out` has written"
    )


def test_the_page_loads_what_was_exported(version: Version, base: Path, tmp_path: Path) -> None:
    """The documentation's examples for transformers and peft run with these paths."""
    page = (DOCS / "serve_elsewhere.md").read_text()
    adapted, whole = re.findall(r"^```python\n((?:from peft|tokenizer =).*?)^```", page, re.MULTILINE | re.DOTALL)
    data = ("--data-dir", tmp_path / "data")
    as_json(app, "export", version.name, "--out", tmp_path / "adapter", *data)
    as_json(app, "export", version.name, "--merged", "--out", tmp_path / "merged", *data)
    distributions = []
    for example, directory in ((adapted, tmp_path / "adapter"), (whole, tmp_path / "merged")):
        names: dict[str, Any] = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoTokenizer": AutoTokenizer}
        exec(example.replace("path/of/base", str(base)).replace("path/of/support-v1", str(directory)), names)
        assert names["tokenizer"]("w1 w2")["input_ids"] == [8, 9]
        distributions.append(logprobs(names["model"].eval(), PROMPT.token_ids or (), (11, 12, 13)))
    assert torch.allclose(distributions[0], distributions[1], atol=1e-4)

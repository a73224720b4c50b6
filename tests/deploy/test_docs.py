"""The documents: every link between them leads somewhere, and what they name of the code is there."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from bonbon.cli.main import add_commands, app
from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WRITTEN = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""The pages that describe the code as it is now."""
PATH = re.compile(r"`((?:bonbon|service|trainer|tests|experiments|benchmarks|deploy|docs)/[\w./-]+)`")
DEFINED = re.compile(r"`(\w+)`(?: of `(\w+)`)? in\s+`([\w/]+\.py)`")
"""A name, perhaps the class that it is a field of, and the file that defines it."""
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def names(source: str) -> set[str]:
    """What a module defines: classes, functions, fields and constants."""
    nodes = list(ast.walk(ast.parse(source)))
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return assigned | {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for groups in LINK.findall(page.read_text()):
        target = groups[0] or groups[1]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_can_be_reached() -> None:
    """Those in docs/ from the README, by links; decisions are listed by their directory."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for groups in LINK.findall(page.read_text()):
            file = (page.parent / groups[0].partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file not in reached:
                waiting.append(file)
    assert {page for page in PAGES if page.parent.name == "docs"} <= reached


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    named = {path for path in PATH.findall(page.read_text()) if "NAME" not in path and "NNNN" not in path}
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", page.read_text())) <= tests


def commands(text: str) -> list[list[str]]:
    """The words of every `bonbon` command in code, blocks and inline, without comments and what is piped to."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.strip() for line in re.findall(r"^    (bonbon .+)$", text, re.MULTILINE)]
    lines += re.findall(r"`(bonbon [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [shlex.split(re.split(r"\s#|[|;&<>]", line)[0]) for line in lines if re.match(r"bonbon [a-z]", line)]


@pytest.fixture(scope="module")
def command_line() -> object:
    add_commands()
    return get_command(app)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_the_commands_that_a_page_names_are_there(page: Path, command_line: Any) -> None:
    for words in commands(page.read_text()):
        command, rest = command_line, words[1:]
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, shlex.join(words)
            command, rest = command.commands[rest[0]], rest[1:]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.strip("[]").partition("=")[0] for word in rest if word.strip("[").startswith("--")}
        assert given <= options | {"--help"}, shlex.join(words)


def test_no_two_decisions_have_the_same_number() -> None:
    numbers = [path.name.partition("-")[0] for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    titles = [path.read_text().split(".")[0] for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    assert titles == [f"# {number}" for number in range(1, len(numbers) + 1)]


def test_the_architecture_lists_every_folder() -> None:
    (tree,) = re.findall(r"^## Folders\n\n```\n(.*?)^```", (ROOT / "docs" / "architecture.md").read_text(), re.M | re.S)
    listed: list[Path] = []
    for indent, name in re.findall(r"^((?:  )*)(\w+)/ +\S", tree, re.M):
        parents = [] if not indent else [path for path in listed if len(path.parts) == len(indent) // 2][-1:]
        listed.append(Path(*parents, name))
    found = {
        folder.relative_to(ROOT)
        for package in ("bonbon", "service", "trainer")
        for file in (ROOT / package).rglob("*")
        if file.suffix in {".py", ".js"} and (folder := file.parent).name not in {"vendor", "__pycache__"}
    }
    assert set(listed) == found
    assert len(tree.splitlines()) == len(listed)


def test_the_glossary_uses_the_words_of_the_code() -> None:
    page = ROOT / "docs" / "glossary.md"
    entries = DEFINED.findall(page.read_text())
    assert len(entries) > 25
    for name, owner, file in entries:
        defined = names((ROOT / file).read_text())
        assert {name, owner} - {""} <= defined, (name, file)


def test_the_glossary_is_in_order() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert titles == sorted(titles, key=str.casefold)

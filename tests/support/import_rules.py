"""Who may import whom: the rules that keep the halves apart and the heavy libraries out of the way."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FORBIDDEN = {"bonbon": {"service", "trainer"}, "service": {"trainer"}, "trainer": {"service"}}
HEAVY = {"torch", "transformers", "peft", "vllm"}
LIGHT_ROOTS = (
    "bonbon",
    "bonbon.__main__",
    "bonbon.cli.main",
    "bonbon.demo.demo_cli",
    "bonbon.engines.remote.remote_engine",
    "bonbon.pairs.pairs_cli",
    "bonbon.registry.models_cli",
    "bonbon.rewards.remote.vllm_pooling",
    "service.app",
    "service.serve_cli",
    "trainer.kubernetes.cluster",
    "trainer.kubernetes.work",
    "trainer.trainer_cli",
)


@dataclass(frozen=True)
class Import:
    """One imported name; `eager` when importing the module imports it."""

    target: str
    line: int
    eager: bool


def violations(root: Path) -> list[str]:
    """What in the source tree at `root` breaks the rules, one line each.

    `bonbon` imports neither half and the halves never import each other, not even inside a function; and no module
    that must start without the heavy libraries imports them when it is imported, directly or through others.
    """
    modules = {_name(root, path): path for package in FORBIDDEN for path in sorted((root / package).rglob("*.py"))}
    imports = {name: list(_imports(name, path)) for name, path in modules.items()}
    found = [
        f"{modules[name].relative_to(root)}:{item.line}: {name.split('.')[0]} must not import {item.target}"
        for name, items in imports.items()
        for item in items
        if item.target.split(".")[0] in FORBIDDEN[name.split(".")[0]]
    ]
    for light in LIGHT_ROOTS:
        if light in modules:
            found += [f"{light} loads {heavy} by way of {path}" for heavy, path in _heavy_paths(light, imports)]
    return found


def _heavy_paths(start: str, imports: dict[str, list[Import]]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    waiting = [(module, module) for module in _with_packages(start)]
    while waiting:
        module, path = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for item in imports.get(module, []):
            if not item.eager:
                continue
            if item.target.split(".")[0] in HEAVY:
                yield item.target, path
            waiting += [(target, f"{path} -> {target}") for target in _with_packages(item.target) if target in imports]


def _with_packages(module: str) -> list[str]:
    """`a.b.c` -> a, a.b, a.b.c: importing a module runs its packages first."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, path: Path) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(), str(path)), True)]
    while pending:
        node, eager = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            ancestors = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*ancestors, node.module] if node.module else ancestors)
            yield Import(source, node.lineno, eager)
            # `from a import b` may name a submodule.
            yield from (Import(f"{source}.{alias.name}", node.lineno, eager) for alias in node.names)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += [(child, False) for child in node.body] + [(child, eager) for child in node.orelse]
        else:
            pending += [(child, eager and not lazy) for child in ast.iter_child_nodes(node)]

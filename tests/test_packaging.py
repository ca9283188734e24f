"""The house: what is shipped, what is imported, and which way imports point."""

import ast
import doctest
import importlib
import pkgutil
import sys
import tomllib
from pathlib import Path

import pytest

import distillzoo.core

ROOT = Path(__file__).parent.parent
ROOMS = ("core", "plugins", "zoo", "benchmarks")

ALLOWED = {
    "core": {"core"},
    "plugins": {"core", "plugins"},
    "zoo": {"core", "zoo"},
    "benchmarks": {"core", "zoo", "benchmarks"},
}


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
    return found


def test_every_package_folder_is_shipped():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {
        "distillzoo." + ".".join(path.parent.relative_to(ROOT).parts)
        for path in sources()
        if path.name == "__init__.py"
    }
    assert folders == listed


def test_imports_point_one_way():
    for path in sources():
        room, *rest = path.relative_to(ROOT).parts
        for module in imports(path):
            package, _, inner = module.partition("distillzoo.")
            if package or not inner:
                continue
            assert inner.split(".")[0] in ALLOWED[room], f"{path} imports {module}"
            if room == "plugins" and inner.startswith("plugins."):
                assert inner.split(".")[1] == rest[0], f"{path}: no plugin imports another kind of plugin"


def test_the_core_knows_no_part_by_name(registry):
    names = {n for kind in ("objective", "recipe") for n in registry.names(kind)} - {"nll", "bc", "kd"}
    for path in (ROOT / "core").rglob("*.py"):
        tree = ast.parse(path.read_text())
        compared = [n for n in ast.walk(tree) if isinstance(n, ast.Compare)]
        for node in compared:
            texts = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            assert not texts & names, f"{path}:{node.lineno} asks for a part by name"


def test_no_module_is_imported_twice_under_two_names():
    assert not set(ROOMS) & set(sys.modules)


@pytest.mark.parametrize("name", [
    m.name for m in pkgutil.walk_packages(distillzoo.core.__path__, "distillzoo.core.") if "cli.main" not in m.name
])  # fmt: skip
def test_doctests(name):
    if name.endswith(".kernels"):
        pytest.importorskip("triton")  # there is none for macOS
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_no_file_is_a_room_too_large_to_know():
    for path in sources():
        assert len(path.read_text().splitlines()) <= 500, path

"""The house: a folder imports only from the floors below its own."""

import ast
import re
from pathlib import Path

import prunesampler

FLOORS = [
    {"base"},
    {"influence", "page"},
    {"measure", "solve", "pool"},
    {"select"},
    {"sampling", "report", "costs"},
    {"pruner"},
    {"train"},
    {"integrations"},
    {"__init__"},
    {"cli"},
]
"""Folders, and the files beside them, from the ground up."""
PACKAGE = Path(prunesampler.__file__).parent


def modules():
    """Every module of the package by its dotted name, such as ``solve.budget``, and what it imports."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        ours = [n.module for n in nodes if (n.module or "").startswith("prunesampler.")]
        found[name] = {module.removeprefix("prunesampler.") for module in ours}
    return found


def test_folders_import_downward_only():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert {name.split(".")[0] for name in modules()} == set(floor)
    for name, imported in modules().items():
        here = name.split(".")[0]
        for other in imported:
            there = other.split(".")[0]
            down = floor[there] < floor[here] or there == here
            assert down, f"{name} must not import {other}: {there}/ is not below {here}/"


def test_nothing_imports_in_a_circle():
    left = modules()
    while left:
        free = {name for name, imported in left.items() if not imported & set(left)}
        assert free, f"these import each other in a circle: {sorted(left)}"
        left = {name: imported for name, imported in left.items() if name not in free}


def test_tests_lie_in_the_folders_of_what_they_test():
    folders = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    assert folders
    assert folders <= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_every_public_name_is_there():
    assert sorted(set(prunesampler.__all__)) == prunesampler.__all__
    assert all(hasattr(prunesampler, name) for name in prunesampler.__all__)


def test_nothing_global():
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for pattern in (
        r"np\.random\.seed",
        r"\brandom\.seed",
        r"torch\.manual_seed\(",
        r"\bprint\(",
        "basicConfig",
        "import pickle",
    ):
        assert not re.search(pattern, text), pattern

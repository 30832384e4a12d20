"""A file imports only from the rows before its own."""

import ast
import re
from pathlib import Path

import prunesampler

ROWS = [
    {"batches", "budget", "checks", "conjugate", "epoch_iterator", "files", "heads", "isolation"},
    {"kernels", "meeting", "positions", "rows", "verdict"},
    {"constraints", "distributed", "factors", "influence", "orders", "reading", "samples", "taps"},
    {"schedule", "selection"},
    {"curvature", "frontier", "losses", "probing", "problem", "report", "sampler", "scores"},
    {"certificate", "costs", "counting", "gradients", "guarantee", "loaders", "plan", "rotation"},
    {"search"},
    {"measuring", "solvers", "watch"},
    {"annealing", "arguments", "choosing", "exchange", "selector"},
    {"pruner"},
    {"redraws"},
    {"callback"},
    {"__init__"},
]
PACKAGE = Path(prunesampler.__file__).parent


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunesampler."):
            yield node.module.split(".")[1]


def test_arrows_point_one_way():
    row = {name: number for number, names in enumerate(ROWS) for name in names}
    files = {path.stem: path for path in PACKAGE.glob("*.py")}
    assert set(files) == set(row)
    for name, path in files.items():
        for other in imports(path):
            assert row[other] < row[name], f"{name} must not import {other}"


def test_names_are_sorted_and_there():
    assert sorted(prunesampler.__all__) == prunesampler.__all__
    assert all(hasattr(prunesampler, name) for name in prunesampler.__all__)


def test_nothing_global():
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for pattern in (
        r"np\.random\.seed",
        r"\brandom\.seed",
        r"\bprint\(",
        "basicConfig",
        "import pickle",
    ):
        assert not re.search(pattern, text), pattern

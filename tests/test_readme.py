import importlib
import re

import pytest
import results
from conftest import ROOT

BENCHMARKS = ROOT / "examples" / "benchmarks"
README = (ROOT / "README.md").read_text()
TABLES = (BENCHMARKS / "README.md").read_text()


def lines_of(mark):
    (diff,) = re.findall(r"```diff\n(.*?)```", README, re.S)
    return [line[1:].strip() for line in diff.splitlines() if line.startswith(mark)]


def test_the_diff_is_that_of_the_custom_loop():
    script = (ROOT / "examples" / "custom_loop.py").read_text().splitlines()
    new = [line.removesuffix("  # +").strip() for line in script if line.endswith("# +")]
    old = [line.removeprefix("# - ") for line in script if line.startswith("# - ")]
    assert lines_of("+") == new
    assert lines_of("-") == old


def test_no_placeholder_is_left():
    for text in (README, TABLES):
        assert not re.search(r"^\s*[A-Z]+_[A-Z]+$", text, re.M)


def test_ci_runs_the_two_commands():
    commands = [line.strip() for line in README.splitlines() if line.startswith("    pip install")]
    ci = (ROOT / ".ci" / "run").read_text()
    assert len(commands) == 2
    assert all(any(ours.startswith(command) for ours in ci.splitlines()) for command in commands)


def test_every_example_and_name_in_it_exists():
    import prunesampler

    for path in re.findall(r"\((examples/[\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(?:\w+=)?([A-Z][A-Za-z]+)\(", README):
        assert hasattr(prunesampler, name), name


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("accuracy", "accuracy_report"),
        ("warmup", "accuracy_report"),
        ("longer", "accuracy_report"),
        ("consistency", "consistency_report"),
        ("transfer", "transfer"),
        ("pools", "pools_report"),
        ("finetuning", "finetuning"),
    ],
)
def test_tables_are_those_of_the_committed_results(name, module):
    report = importlib.import_module(module)
    rows = results.read(BENCHMARKS / "measured" / f"{name}.jsonl")
    assert len({row["seed"] for row in rows}) >= 3
    for table in report.tables(rows):
        assert results.markdown(table) in TABLES


def test_the_accuracies_of_the_readme_are_rows_of_a_benchmark():
    (table,) = re.findall(r"\| accuracy % \|.*?\n\n", README, re.S)
    rows = table.strip().splitlines()
    assert len(rows) > 5
    for row in rows:
        assert row in TABLES.splitlines()

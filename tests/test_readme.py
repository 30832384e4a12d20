import importlib
import re

import pytest
import results
from conftest import ROOT

BENCHMARKS = ROOT / "examples" / "benchmarks"
README = (ROOT / "README.md").read_text()
DOCS = {
    path.relative_to(ROOT / "docs").as_posix(): path.read_text()
    for path in (ROOT / "docs").rglob("*.md")
}
TABLES = "\n".join(text for name, text in DOCS.items() if name.startswith(("benchmarks/", "tried")))
SCRIPTS = {
    "guide/first-run.md": "custom_loop", "frameworks/plain.md": "custom_loop", "frameworks/accelerate.md": "accelerate_cv",
    "frameworks/lightning.md": "lightning_digits", "frameworks/transformers.md": "transformers_text",
    "frameworks/ddp.md": "ddp_plain",
}  # fmt: skip
"""Pages with the diff of an example."""
ELSEWHERE = {"Subset", "ConcatDataset"}


def lines_of(mark, text):
    (diff,) = re.findall(r"```diff\n(.*?)```", text, re.S)
    return [line[1:].strip() for line in diff.splitlines() if line.startswith(mark)]


@pytest.mark.parametrize("page", [None, *SCRIPTS])
def test_a_diff_is_that_of_its_script(page):
    text = README if page is None else DOCS[page]
    name = "custom_loop" if page is None else SCRIPTS[page]
    script = [line.strip() for line in (ROOT / "examples" / f"{name}.py").read_text().splitlines()]
    assert lines_of("+", text) == [
        line.removesuffix("# +").strip() for line in script if line.endswith("# +")
    ]
    assert lines_of("-", text) == [
        line.removeprefix("# - ") for line in script if line.startswith("# - ")
    ]
    assert page is None or f"`examples/{name}.py`" in text


def test_no_placeholder_is_left():
    for text in (README, *DOCS.values()):
        assert not re.search(r"^\s*[A-Z]+_[A-Z]+$", text, re.M)


def test_ci_runs_the_two_commands():
    commands = [line.strip() for line in README.splitlines() if line.startswith("    pip install")]
    ci = (ROOT / ".ci" / "run").read_text()
    assert commands[0] == "pip install prunesampler"
    assert len(commands) == 3
    assert all(
        any(ours.startswith(command) for ours in ci.splitlines()) for command in commands[1:]
    )


def test_every_link_example_and_name_exists():
    import prunesampler

    for name, text in {"../README.md": README, **DOCS}.items():
        here = (ROOT / "docs" / name).parent
        for path in re.findall(r"\]\((?!http|#)([^)#]+)", text):
            assert (here / path).exists(), f"{name}: {path}"
        for path in re.findall(r"examples/[\w/]+\.py", text):
            assert (ROOT / path).exists(), f"{name}: {path}"
        for part in re.findall(r"`(?:\w+=)?([A-Z][A-Za-z]+)\([^)`]*\)`", text):
            known = hasattr(prunesampler, part) or part in ELSEWHERE
            assert known, f"{name}: {part}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_figures_of_the_readme_are_those_of_the_page_that_it_names():
    (table,) = re.findall(r"\| you have \|.*?\n\n", README, re.S)
    for row in table.strip().splitlines()[2:]:
        _, _, given, rival, link, _ = row.split("|")
        (page,) = re.findall(r"\(docs/([^)]+)\)", link)
        figures = re.findall(r"\d+\.\d+", given + rival)
        assert figures
        for figure in figures:
            assert figure in DOCS[page], f"{figure} is not in {page}"


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


@pytest.mark.parametrize("name", ["memorising", "junk_network", "junk_pretrained"])
def test_the_tables_of_networks_are_those_of_their_files(name):
    report = importlib.import_module("memorising")
    (table,) = report.tables(results.read(BENCHMARKS / "measured" / f"{name}.jsonl"))
    assert results.markdown(table) in TABLES

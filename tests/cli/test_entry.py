"""The command line: help, version, and what is said where a package is missing."""

import re
import sys

import pytest
from cli_files import invoke, said
from conftest import ROOT

import prunesampler

COMMANDS = ("show", "diff", "export", "audit", "report")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_right(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = said(invoke(command, "--help"))
    (example,) = re.findall(rf"Example: prunesampler ({command} .*\S)", text)
    options = re.findall(r" (-[-\w]+)", example)
    assert all(option in text for option in options)


def test_all_commands_are_listed():
    text = said(invoke("--help"))
    assert all(re.search(rf"^. {command} ", text, re.M) for command in COMMANDS)


def test_the_version_is_that_of_the_project():
    text = (ROOT / "pyproject.toml").read_text()
    project = dict(re.findall(r'^(version|authors) = .*?"(.*?)"', text, re.M))
    assert prunesampler.__version__ == project["version"]
    assert said(invoke("--version")) == f"prunesampler {project['version']}\n"
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation
    assert f"- name: {project['authors']}\n" in citation


def test_without_typer_it_says_what_to_install(monkeypatch, capsys):
    from prunesampler.cli.main import main

    for name in ("prunesampler.cli.app", "prunesampler.cli.terminal"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert 'pip install "prunesampler[cli]"' in capsys.readouterr().err


def test_what_else_is_missing_is_not_hidden(monkeypatch):
    from prunesampler.cli.main import main

    monkeypatch.delitem(sys.modules, "prunesampler.cli.app")
    monkeypatch.setitem(sys.modules, "prunesampler.cli.facts", None)
    with pytest.raises(ModuleNotFoundError, match="facts"):
        main()

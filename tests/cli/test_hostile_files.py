"""The command line: one line where a file is refused, whatever it holds, and nothing written."""

import json
import os
import re
import struct

import pytest
import torch
from cli_files import chosen, fill, invoke, refused, said
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from prunesampler import Trajectory
from prunesampler.base.files import pack, pack_state, unpack
from prunesampler.select.selection import KIND


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file of every kind, all of the same 60 samples."""
    folder = tmp_path_factory.mktemp("files")
    fill(folder)
    return folder


@pytest.fixture
def run(files, monkeypatch):
    """Run a command in that folder."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "400")
    return invoke


def with_header(text):
    """A file of the right form with any header."""
    outer = json.dumps({"__metadata__": {"header": text}}).encode()
    return struct.pack("<Q", len(outer)) + outer


def changed(files, **fields):
    """The selection with other values in its header."""
    header, tensors = unpack(KIND, (files / "selection").read_bytes())
    return pack(KIND, {**header, **fields}, tensors)


HOSTILE = {
    "nothing": (lambda f: b"", "not a file of prunesampler"),
    "zeros": (lambda f: bytes(1000), "not a file of prunesampler"),
    "a header of eight exabytes": (lambda f: b"\xff" * 64, "not a file of prunesampler"),
    "other tensors": (lambda f: save({"x": torch.ones(2)}), "not a file of prunesampler"),
    "cut in the header": (lambda f: (f / "selection").read_bytes()[:200], "not a file of"),
    "cut at the end": (lambda f: (f / "selection").read_bytes()[:-8], "not a whole file of"),
    "scores cut at the end": (lambda f: (f / "scores").read_bytes()[:-8], "not a whole file of"),
    "trajectory cut": (lambda f: (f / "trajectory").read_bytes()[:-8], "not a whole file of"),
    "deep JSON": (lambda f: with_header("[" * 10**5 + "]" * 10**5), "not a file of prunesampler"),
    "deep JSON outside": (lambda f: struct.pack("<Q", 10**5) + b"[" * 10**5, "not a file of"),
    "deep state": (lambda f: pack_state({"scores": json.loads("[" * 900 + "]" * 900)}), "no scores"),
    "another kind": (lambda f: pack(("sums", 1), {}, {}), "this release knows no files of 'sums'"),
    "a kind that is none": (lambda f: with_header('{"format": [], "version": 1}'), "not a file of"),
    "a newer version": (lambda f: pack((KIND[0], 99), {}, {}), "version 99; this release reads"),
    "state of a run": (lambda f: pack_state({"sampler": {"epoch": 1}}), "the state of a run"),
    "more samples than there are": (lambda f: changed(f, num_samples=10**30), "no dataset is so large"),
    "a huge shift": (lambda f: changed(f, shift=10**400), "not a complete selection"),
    "a huge fact": (lambda f: changed(f, metadata={"random_shift": 10**400}), "a number beyond"),
    "number of 5,000 digits": (lambda f: with_header("9" * 5000), "not a file of prunesampler"),
    "too few samples": (lambda f: changed(f, num_samples=10), "nothing would be kept|within 0 to 9"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(
    "command", [("show", "x"), ("export", "x", "--csv", "-o", "out"), ("diff", "x", "x"), ("audit", "x"), ("report", "x", "-o", "out")]
)  # fmt: skip
def test_a_hostile_file_is_refused_in_one_line(run, files, tmp_path, monkeypatch, kind, command):
    make, text = HOSTILE[kind]
    (tmp_path / "x").write_bytes(make(files))
    monkeypatch.chdir(tmp_path)
    assert re.search(text, refused(run(*command)))
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("command", ["show", "audit", "report"])
def test_a_path_that_is_no_file_is_refused(run, tmp_path, command):
    assert refused(run(command, tmp_path / "none")).endswith("none: No such file or directory")
    assert refused(run(command, tmp_path)).endswith("Is a directory")


def test_what_a_file_claims_is_held_against_the_memory(run, tmp_path):
    chosen([1], 10**10).save(tmp_path / "huge")
    assert "kept 9,999,999,999 (100 %)" in said(run("show", tmp_path / "huge"))
    text = refused(run("export", tmp_path / "huge", "--csv", "-o", tmp_path / "out"))
    assert "10,000,000,000 samples take 931 GiB" in text
    Trajectory(torch.zeros(0, 10**13)).save(tmp_path / "wide")
    assert "take" in refused(run("diff", tmp_path / "wide", tmp_path / "wide"))
    assert sorted(os.listdir(tmp_path)) == ["huge", "wide"]


def test_texts_in_files_do_not_steer_the_terminal(run, tmp_path):
    layer = "\x1b[31mred[bold]\u202e\r\n" + "x" * 5000
    Trajectory(torch.ones(1, 3), layer=layer).save(tmp_path / "t")
    text = said(run("show", tmp_path / "t"))
    assert r"layer \x1b[31mred[bold]\u202e " in text
    assert "\x1b" not in text
    assert 500 < text.count("x") < 700
    (tmp_path / "u").write_bytes(pack(("\x1b[2J\nx", 1), {}, {}))
    assert r"\x1b[2J" in refused(run("show", tmp_path / "u"))


@given(
    st.sampled_from(["selection", "scores", "trajectory", "other selection"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3),
    st.sampled_from([("show",), ("export", "--jsonl"), ("diff", "selection"), ("audit",)]),
    st.booleans(),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bits_are_refused_or_unseen(run, files, kind, flips, command, early):
    data = bytearray((files / kind).read_bytes())
    within = 900 if early else len(data) - 1  # the header is where most can go wrong
    for place, bit in flips:
        data[int(place * min(within, len(data) - 1))] ^= 1 << bit
    (files / "flipped").write_bytes(data)
    found = run(command[0], "flipped", *command[1:])
    if found.exit_code:
        refused(found)
    else:
        said(found)

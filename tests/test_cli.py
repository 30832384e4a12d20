"""The command line: what each command says, and one line where a file is refused."""

import csv
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import ImageFolder
from typer.testing import CliRunner

import prunesampler
from prunesampler import (
    Audit,
    Budget,
    ExactCurvature,
    InfluencePruner,
    Scores,
    Selection,
    SquaredError,
    TokenCrossEntropy,
    Trajectory,
)
from prunesampler.base.files import pack, pack_state, unpack
from prunesampler.cli.app import app
from prunesampler.cli.comparing import rank_correlation
from prunesampler.select.selection import KIND

COMMANDS = ("show", "diff", "export", "audit", "report")
NAN = math.nan


class Mine(ExactCurvature):
    """A curvature that this package does not know."""


def scores_of(data, layer=None, losses=None, curvature=None):
    pruner = InfluencePruner(
        data, budget=Budget(count=9), losses=losses, curvature=curvature, progress=False
    )
    torch.manual_seed(1)
    return pruner, pruner.measure(layer or nn.Linear(16, 3))


def chosen(pruned, n, **more):
    return Selection(
        torch.tensor(pruned, dtype=torch.int64), n, 0.5, NAN, None, Budget(count=2), **more
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file of every kind, all of the same 60 samples."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    x, y = 3 * torch.randn(60, 16), torch.arange(60) % 3
    x[59] = x[56]  # a copy of the same class
    data = TensorDataset(x, y)
    pruner, scores = scores_of(data)
    scores.save(folder / "scores")
    scores_of(data)[1].save(folder / "wanted")
    scores_of(data, nn.Linear(16, 3, bias=False))[1].save(folder / "other")
    scores_of(TensorDataset(x, (y + 1) % 3))[1].save(folder / "elsewhere")
    scores_of(data, curvature=Mine())[1].save(folder / "mine")
    pruner.choose_from(scores).save(folder / "selection")
    chosen([0, 2, 5], 60, metadata={"by": "the trajectory"}).save(folder / "other selection")
    errors = torch.rand(3, 60)
    errors[1, 7] = NAN
    Trajectory(errors, layer="head.fc").save(folder / "trajectory")
    Trajectory(errors[:2], exact=False).save(folder / "short")
    return folder


@pytest.fixture
def run(files, monkeypatch):
    """Run a command in that folder; what it wrote, and its exit code."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "400")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def said(found):
    """What a command wrote to stdout, with single spaces; it must have gone well."""
    assert found.exit_code == 0, found.stderr
    assert not found.stderr
    return re.sub(r" +", " ", found.stdout)


def refused(found):
    """The one line on stderr; nothing may be on stdout."""
    assert found.exit_code == 2, (found.stdout, found.exception)
    assert isinstance(found.exception, SystemExit)
    assert not found.stdout
    (line,) = found.stderr.splitlines()
    return line


def test_show_tells_of_a_selection_what_it_keeps_and_what_that_costs(run, files):
    text, selection = said(run("show", "selection")), Selection.load(files / "selection")
    assert "kind selection" in text
    assert "kept 51 (85 %)" in text
    assert "budget Budget(count=9)" in text
    assert f"verdict {selection.verdict}" in text
    assert "proved nothing: give the curvature the L2 penalty" in text
    assert "not predicted how a network does" in text


def test_show_tells_who_chose_where_no_shift_is_known(run, tmp_path):
    path = tmp_path / "hardest"
    Selection(
        torch.tensor([1]), 4, NAN, NAN, None, Budget(fraction=0.25), {"by": "trajectory", "headroom": 0.95}
    ).save(path)  # fmt: skip
    text = said(run("show", path))
    assert "chosen by trajectory" in text
    assert "budget Budget(fraction=0.25)" in text
    assert "headroom 0.95: the easier half hardly pulls" in text
    assert "nan" not in text


def test_show_tells_the_weights(run, tmp_path):
    chosen([1], 3, weights=torch.tensor([0.5, 2.0])).save(tmp_path / "weighted")
    assert "weights from 0.5 to 2" in said(run("show", tmp_path / "weighted"))


def test_show_tells_of_scores_what_was_measured(run, files):
    text, scores = said(run("show", "scores")), Scores.load(files / "scores")
    assert "kind scores" in text
    assert "samples 60" in text
    assert "parameters 34, which the loss can tell apart" in text
    assert "classes 3" in text
    assert f"mean loss {float(scores.measurements.losses.mean()):.4g}" in text
    assert re.search(r"headroom 0\.\d\d: ", text)


def test_show_tells_of_a_trajectory_what_it_saw(run):
    text = said(run("show", "trajectory"))
    assert "kind trajectory" in text
    assert "epochs 3, in which 99% of the samples were seen" in text
    assert "layer head.fc" in text
    assert "errors in units of the loss" in text
    assert re.search(r"headroom 0\.\d\d after the first epoch; at the end 0\.\d\d: ", text)
    assert "errors as shares of their batch's mean" in said(run("show", "short"))


def test_a_trajectory_without_epochs_is_shown(run, tmp_path):
    Trajectory(torch.zeros(0, 5)).save(tmp_path / "none")
    assert "epochs 0" in said(run("show", tmp_path / "none"))


class Sentences(Dataset):
    """Twenty sequences of four tokens."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        tokens = torch.arange(i, i + 4) % 7
        return tokens, tokens


KINDS = {
    "sequences": (Sentences(), nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7)), TokenCrossEntropy()),
    "many outputs": (TensorDataset(torch.randn(30, 4), torch.arange(30) * 9), nn.Linear(4, 300), None),
    "regression": (TensorDataset(torch.randn(30, 4), torch.randn(30, 1)), nn.Linear(4, 1), SquaredError()),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_every_kind_are_shown_compared_and_exported(run, tmp_path, kind):
    scores = scores_of(*KINDS[kind])[1]
    scores.save(tmp_path / "scores")
    text = said(run("show", tmp_path / "scores"))
    assert f"samples {len(scores)}" in text
    assert ("tokens 80" in text) == (kind == "sequences")
    assert "hardest half in common 100 %" in said(run("diff", *[tmp_path / "scores"] * 2))
    names = said(run("export", tmp_path / "scores", "--csv")).splitlines()[0]
    assert names.startswith("index,loss,error")
    assert ("leave_one_out" in names) == (kind == "many outputs")


def test_a_curvature_of_one_s_own_is_not_needed_to_look(run):
    assert "samples 60" in said(run("show", "mine"))
    assert said(run("export", "mine", "--csv")).startswith("index,loss,error,label\n")
    assert "curvature of your own, 'Mine'" in refused(run("audit", "mine"))


def test_diff_counts_what_two_selections_keep_and_what_two_random_ones_would(run, tmp_path):
    chosen([0, 1, 2, 3], 10).save(tmp_path / "a")
    chosen([2, 3, 4, 5, 6], 10).save(tmp_path / "b")
    text = said(run("diff", tmp_path / "a", tmp_path / "b"))
    assert "kept by A 6 (60 %)" in text
    assert "kept by B 5 (50 %)" in text
    assert "kept by both 3 (30 %) 3 (30 %)" in text
    assert "kept by A only 3 (30 %) 3 (30 %)" in text
    assert "kept by B only 2 (20 %) 2 (20 %)" in text
    assert "kept by neither 2 (20 %) 2 (20 %)" in text
    assert "agreement 5 (50 %) 5 (50 %)" in text


def test_diff_knows_what_random_sets_of_these_sizes_have_in_common(run, tmp_path):
    torch.manual_seed(0)
    for name, count in (("a", 6000), ("b", 2500)):
        chosen(torch.randperm(10_000)[:count].sort().values.tolist(), 10_000).save(tmp_path / name)
    for line in said(run("diff", tmp_path / "a", tmp_path / "b")).splitlines():
        counts = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) \(", line)]
        if len(counts) == 2:
            assert counts[0] == pytest.approx(counts[1], abs=100)


def test_diff_says_what_would_be_by_chance_of_the_kept_share(run):
    text = said(run("diff", "selection", "other selection"))
    assert "kept by B 57 (95 %)" in text
    assert re.search(r"kept by both \d\d \(\d\d %\) 48 \(81 %\)", text)


def test_diff_holds_the_orders_of_two_scores_against_each_other(run):
    text = said(run("diff", "scores", "scores"))
    assert "correlation of the errors' ranks 1.00 0.00" in text
    assert "hardest half in common 100 % 50 %" in text
    assert "other labels 0 (0 %)" in text
    text = said(run("diff", "scores", "other"))
    assert re.search(r"mean loss of A [\d.]+ \n mean loss of B [\d.]+ \n", text)
    assert "ranks 1.00" not in text


def test_diff_holds_the_last_errors_of_two_trajectories_against_each_other(run):
    text = said(run("diff", "trajectory", "short"))
    assert "epochs of A 3" in text
    assert "epochs of B 2" in text
    assert re.search(r"correlation of the errors' ranks -?0\.\d\d 0.00", text)


def test_diff_says_where_two_trajectories_saw_nothing_of_the_same_samples(run, tmp_path):
    Trajectory(torch.tensor([[1.0, NAN]])).save(tmp_path / "a")
    Trajectory(torch.tensor([[NAN, 1.0]])).save(tmp_path / "b")
    assert "known of both 0 samples" in said(run("diff", tmp_path / "a", tmp_path / "b"))


def test_diff_refuses_what_cannot_be_compared(run, tmp_path):
    chosen([1], 70).save(tmp_path / "a")
    Trajectory(torch.ones(1, 5)).save(tmp_path / "b")
    assert "holds a selection and scores scores;" in refused(run("diff", "selection", "scores"))
    assert "A is of 60 samples and B of 70" in refused(run("diff", "selection", tmp_path / "a"))
    assert "A is of 60 samples and B of 5" in refused(run("diff", "trajectory", tmp_path / "b"))
    assert "of two datasets" in refused(run("diff", "scores", "elsewhere"))


def test_equal_values_share_their_rank():
    x, y = torch.tensor([1.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert rank_correlation(x, y) == pytest.approx(2 / math.sqrt(6))
    assert math.isnan(rank_correlation(x, torch.zeros(4)))


def test_export_writes_the_kept_indices(run, files, tmp_path):
    kept = Selection.load(files / "selection").kept.tolist()
    assert [
        int(line) for line in said(run("export", "selection", "--indices")).splitlines()
    ] == kept
    assert said(run("export", "selection", "--indices", "-o", tmp_path / "kept.txt")) == ""
    assert [int(line) for line in (tmp_path / "kept.txt").read_text().splitlines()] == kept


def test_export_writes_a_row_for_each_sample_of_a_selection(run, tmp_path):
    chosen([1], 3, weights=torch.tensor([0.5, 2.0])).save(tmp_path / "weighted")
    text = said(run("export", tmp_path / "weighted", "--csv"))
    assert text == "index,kept,weight\n0,true,0.5\n1,false,\n2,true,2.0\n"
    lines = said(run("export", tmp_path / "weighted", "--jsonl")).splitlines()
    assert json.loads(lines[1]) == {"index": 1, "kept": False, "weight": None}
    assert json.loads(lines[2]) == {"index": 2, "kept": True, "weight": 2.0}


def test_export_writes_what_scores_know_of_each_sample(run, files):
    scores = Scores.load(files / "scores")
    rows = list(csv.DictReader(io.StringIO(said(run("export", "scores", "--csv")))))
    p = scores.leave_one_out().gather(1, scores.labels[:, None])[:, 0]
    known = {
        "index": torch.arange(60), "loss": scores.measurements.losses, "error": scores.measurements.errors,
        "label": scores.labels, "leave_one_out": p,
    }  # fmt: skip
    assert list(rows[0]) == list(known)
    for name, values in known.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values.tolist(), rel=1e-5)


def test_export_writes_the_error_of_each_epoch(run, files):
    errors = Trajectory.load(files / "trajectory").errors
    lines = [json.loads(line) for line in said(run("export", "trajectory", "--jsonl")).splitlines()]
    assert list(lines[0]) == ["index", "error_0", "error_1", "error_2"]
    assert lines[7]["error_1"] is None
    assert [line["error_2"] for line in lines] == pytest.approx(errors[2].tolist(), rel=1e-6)


def test_export_wants_one_format_and_a_file_that_has_it(run, tmp_path):
    assert "one of --indices, --csv and --jsonl" in refused(run("export", "selection"))
    assert "one of" in refused(run("export", "selection", "--csv", "--jsonl"))
    text = refused(run("export", "scores", "--indices", "-o", tmp_path / "kept"))
    assert "scores holds scores, which keep no samples: take --csv" in text
    assert "a folder that is there" in refused(
        run("export", "selection", "--csv", "-o", tmp_path / "none" / "x")
    )
    assert "a folder that is there" in refused(run("export", "selection", "--csv", "-o", tmp_path))
    assert not list(tmp_path.iterdir())


def test_audit_is_the_table_of_the_audit(run, files):
    scores = Scores.load(files / "scores")
    for wanted, given_more in ((None, ()), ("wanted", ("--wanted", "wanted"))):
        audit = scores.audit(None if wanted is None else Scores.load(files / wanted))
        text = said(run("audit", "scores", *given_more))
        for line in str(audit).splitlines()[2:]:
            cells = [cell for cell in line[2:-2].split(" | ") if cell]
            assert " ".join(cells) in text


def test_audit_wants_scores(run):
    assert "selection holds a selection; give a file that Scores.save wrote" in refused(
        run("audit", "selection")
    )
    assert "trajectory holds a trajectory" in refused(
        run("audit", "scores", "--wanted", "trajectory")
    )
    assert "layer" in refused(run("audit", "scores", "--wanted", "other"))


@pytest.fixture
def asked(monkeypatch):
    """What the methods that write a page were asked for."""
    calls = []

    def page(self, path, dataset=None, scores=None):
        Path(path).write_text("a page")
        calls.append((self, dataset, scores))

    monkeypatch.setattr(Selection, "report", page, raising=False)
    monkeypatch.setattr(Audit, "report", page, raising=False)
    return calls


@pytest.fixture
def photos(tmp_path):
    """Sixty images of two classes."""
    from PIL import Image

    for i in range(60):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return tmp_path / "photos"


def test_report_asks_for_a_page_with_scores_and_images(run, asked, photos, tmp_path):
    page = tmp_path / "page.html"
    found = run("report", "selection", "-o", page, "--scores", "scores", "--images", photos)
    assert said(found) == f"wrote {page}\n"
    assert page.read_text() == "a page"
    ((selection, dataset, scores),) = asked
    assert isinstance(selection, Selection)
    assert isinstance(dataset, ImageFolder)
    assert isinstance(scores, Scores)


def test_report_of_scores_is_one_of_their_audit(run, asked, tmp_path):
    said(run("report", "scores", "-o", tmp_path / "page.html"))
    ((audit, dataset, scores),) = asked
    assert isinstance(audit, Audit)
    assert dataset is None
    assert scores is None


def test_report_writes_the_page(run, photos, tmp_path):
    for file in ("selection", "other selection", "scores"):
        for more in ((), ("--images", photos)):
            page = tmp_path / f"{file} {len(more)}.html"
            said(run("report", file, "-o", page, *more))
            assert page.read_text().lower().startswith("<!doctype html>")


def test_report_refuses_other_files_and_other_images(run, photos, tmp_path):
    page = ("-o", tmp_path / "page.html")
    assert "a report is of a selection or of scores" in refused(run("report", "trajectory", *page))
    assert "nowhere" in refused(run("report", "scores", *page, "--images", tmp_path / "nowhere"))
    (photos / "a" / "0.png").unlink()
    text = refused(run("report", "scores", *page, "--images", photos))
    assert "59" in text
    assert "60" in text
    assert "there" in refused(run("report", "scores", "-o", tmp_path / "none" / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_images_need_torchvision(run, monkeypatch, photos, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    text = refused(run("report", "scores", "-o", tmp_path / "page.html", "--images", photos))
    assert text.endswith("--images needs torchvision: pip install torchvision")


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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_right(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = said(run(command, "--help"))
    (example,) = re.findall(rf"Example: prunesampler ({command} .*\S)", text)
    options = re.findall(r" (-[-\w]+)", example)
    assert all(option in text for option in options)


def test_all_commands_are_listed(run):
    text = said(run("--help"))
    assert all(re.search(rf"^. {command} ", text, re.M) for command in COMMANDS)


def test_the_version_is_that_of_the_project(run):
    text = (ROOT / "pyproject.toml").read_text()
    project = dict(re.findall(r'^(version|authors) = .*?"(.*?)"', text, re.M))
    assert prunesampler.__version__ == project["version"]
    assert said(run("--version")) == f"prunesampler {project['version']}\n"
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


@pytest.mark.slow
def test_the_installed_command_runs(files):
    command = Path(sys.executable).with_name("prunesampler")
    for arguments, code in ((["show", "selection"], 0), (["show", "nothing"], 2)):
        found = subprocess.run(
            [command, *arguments], cwd=files, capture_output=True, text=True, timeout=120
        )
        assert found.returncode == code, found.stderr
        assert len(found.stderr.splitlines()) == (code > 0)
    assert found.stderr == "prunesampler: nothing: No such file or directory\n"

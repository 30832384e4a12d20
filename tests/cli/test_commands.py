"""The command line: what each command says."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_files import NAN, chosen, fill, invoke, refused, said, scores_of
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from prunesampler import (
    Budget,
    Scores,
    Selection,
    SquaredError,
    TokenCrossEntropy,
    Trajectory,
)
from prunesampler.cli.comparing import rank_correlation


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
    text = said(run("diff", tmp_path / "none", tmp_path / "none"))
    assert "headroom of A unknown" in text
    assert "nan" not in text


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

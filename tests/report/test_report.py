import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunesampler
from prunesampler import Budget, ExactCurvature, InfluencePruner, Selection
from prunesampler.report.text import figures, summary

FACTS = {
    "measuring_seconds": 4.0, "curvature_seconds": 2.0, "solving_seconds": 1.0,
    "certificate_seconds": 3.0, "curvature": "ExactCurvature", "damping": 0.01, "parameters": 2,
    "random_shift": 2.0, "random_newton_shift": 3.0, "layer": "fc", "cost": False,
}  # fmt: skip


def selection(facts=FACTS, **changes):
    values = {"shift": 0.5, "newton_shift": 0.6, "bound": None, "budget": Budget(count=2)}
    return Selection(torch.tensor([1, 4]), 6, metadata=facts, **{**values, **changes})


def test_three_lines_tell_of_a_selection():
    assert summary(4, selection(), 10.2, 20.4).splitlines() == [
        "prunesampler: after epoch 4 kept 4 of 6 samples (66.7%), chosen by layer 'fc'",
        "It took 10.2 s = 0.50 of the last epoch (measuring 39%, curvature 20%, solving 10%, "
        "certificate 29%).",
        selection().verdict,
    ]


def test_a_fourth_line_tells_what_is_proved():
    lines = summary(4, selection(bound=1.5), 10.0, None).splitlines()
    assert lines[1].startswith("It took 10.0 s (measuring 40%")
    assert lines[3:] == [f"Proved: {selection(bound=1.5).proved}."]
    assert "hoped" not in summary(4, selection(bound=1.5), 10.0, None)


def test_one_line_tells_of_a_redraw():
    drawn = selection(newton_shift=math.nan, facts={**FACTS, "random_newton_shift": None})
    assert summary(4, drawn, 2.0, 20.0) == (
        "prunesampler: after epoch 4 kept 4 of 6 samples (66.7%), drawn again; predicted shift 0.5 "
        "first order (random set 2); 2.0 s (solving 50%) = 0.10 of the last epoch"
    )


def test_a_selection_that_was_loaded_is_told_of_as_far_as_it_is_known():
    lines = summary(0, selection(facts={}), 1.0, None).splitlines()
    assert lines == [
        "prunesampler: after epoch 0 kept 4 of 6 samples (66.7%)",
        "It took 1.0 s.",
        "Nothing is known of random sets, so there is no verdict.",
    ]
    assert "random" not in summary(0, selection(facts={}, newton_shift=math.nan), 1.0, None)


def test_trackers_get_what_is_known():
    assert figures(selection(), 10.0) == {
        "pruning/kept": 4.0, "pruning/shift": 0.5, "pruning/newton_shift": 0.6,
        "pruning/random_shift": 2.0, "pruning/random_newton_shift": 3.0, "pruning/seconds": 10.0,
    }  # fmt: skip
    drawn = selection(newton_shift=math.nan, facts={**FACTS, "random_newton_shift": None})
    assert set(figures(drawn, 1.0)) == {
        "pruning/kept", "pruning/shift", "pruning/random_shift", "pruning/seconds",
    }  # fmt: skip


def test_a_true_selection_is_told_in_full(digits):
    torch.manual_seed(0)
    found = InfluencePruner(
        digits, budget=Budget(fraction=0.4), curvature=ExactCurvature(damping=0.1), progress=False
    ).select(nn.Sequential(nn.Linear(64, 10)))
    seconds = sum(v for k, v in found.metadata.items() if k.endswith("_seconds"))
    lines = summary(1, found, seconds, 1.0).splitlines()
    assert len(lines) == 5
    assert lines[3].startswith("For networks trained from scratch: headroom 0.")
    shares = [int(share) for share in re.findall(r"(\d+)%", lines[1])]
    assert len(shares) == 4
    assert 98 <= sum(shares) <= 102
    assert lines[2].startswith("The set is better than a random set: it shifts ")
    assert found.beats_random


@pytest.mark.slow
def test_a_warning_points_into_a_project_whose_name_begins_like_ours(tmp_path):
    """A file in prunesampler_project/, beside the package, was taken for the package itself."""
    home = Path(prunesampler.__file__).parent
    shutil.copytree(home, tmp_path / "prunesampler", ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "prunesampler_project" / "train.py"
    script.parent.mkdir()
    script.write_text(
        "from prunesampler.base.checks import warn\n\ndef train():\n    warn('here')\n\ntrain()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert f"{script}:4: UserWarning: here" in done.stderr


def test_warnings_of_the_package_itself_point_at_the_caller(recwarn):
    prunesampler.base.checks.warn("here")
    assert recwarn.pop(UserWarning).filename == __file__


@pytest.mark.parametrize("epoch_seconds", [None, 0.0])
def test_no_epoch_before_it_no_ratio(epoch_seconds):
    assert "of the last epoch" not in summary(0, selection(), 1.0, epoch_seconds)

"""Killed at twenty moments, a run ends as if nothing had happened, in every framework."""

import json

import pytest
from conftest import ROOT, run_python

pytestmark = pytest.mark.slow
KILLS = 20


def read(path):
    """All whole lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith('"]')]


@pytest.mark.parametrize(
    ("kind", "processes"),
    [("plain", 1), ("stateful", 1), ("lightning", 1), ("accelerate", 1), ("accelerate", 2)],
)
def test_indices_and_losses_are_those_of_the_undisturbed_run(kind, processes, tmp_path):
    output = run_python(
        ROOT / "tests" / "killed.py", kind, str(processes), tmp_path / "runs", str(KILLS)
    )
    kills = json.loads(output.splitlines()[-1])["kills"]
    assert set(kills.values()) == {KILLS // 4}
    for rank in range(processes):
        whole = read(tmp_path / "runs" / "whole" / f"log-{rank}.jsonl")
        expected = {(epoch, step): rest for epoch, step, *rest in whole}
        assert len(expected) == len(whole) >= 6 + 5 * 4
        drawn = [index for index, _ in expected.values() for index in index]
        assert len(set(drawn[: 144 // processes])) == 144 // processes
        killed = read(tmp_path / "runs" / "killed" / f"log-{rank}.jsonl")
        assert len(killed) > len(whole)
        for epoch, step, *rest in killed:
            assert expected[epoch, step] == rest, (epoch, step)
        assert {(epoch, step) for epoch, step, *_ in killed} == set(expected)

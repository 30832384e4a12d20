"""On one process and on two, under every framework: the trajectory is what the runs saw themselves."""

import pytest
import torch
from conftest import Jobs
from recording import close

pytestmark = pytest.mark.slow
JOBS = ["plain", "sharing", "lightning", "trainer"]
job = Jobs("trajectory_jobs.py", {1: JOBS, 2: [*JOBS, "one_cannot_record"]})


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", JOBS)
def test_the_trajectory_is_what_the_processes_saw(name, processes):
    ranks = job(name, processes)
    for case in ranks[0]["found"]:
        rows = [rank["found"][case] for rank in ranks]
        truth = torch.tensor([row["truth"] for row in rows]).nanmean(0)
        for row in rows:
            assert close(torch.tensor(row["found"]), torch.tensor(rows[0]["found"]), rtol=0), case
            assert row["kept"] == rows[0]["kept"], case
            assert row["exact"], case
            assert row["layer"].endswith("3"), case
            rtol = 0.02 if case == "bf16" else 2e-3
            assert close(torch.tensor(row["found"]), truth, rtol=rtol), case
        assert [len(kept) for kept in rows[0]["kept"]][2:] == [32] * 4, case


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_that_are_dispatched_are_refused(processes):
    for rank in job("sharing", processes):
        assert rank["refused"].startswith("ValueError: accelerate dispatches the batches")


def test_a_process_that_cannot_record_ends_it_for_all_and_one_says_so():
    first, second = job("one_cannot_record", 2)
    assert first["epochs"] == second["epochs"] == 1
    (said,) = first["said"]
    assert "ended after 1 epochs: another process could not record" in said
    assert second["said"] == []

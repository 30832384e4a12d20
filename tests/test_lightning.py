"""Under Lightning, what the plan said is what happens, and resuming changes nothing."""

import csv
from functools import partial
from itertools import chain

import pytest
from conftest import run_job

job = partial(run_job, "lightning_jobs.py")


@pytest.mark.parametrize("processes", [1, 2])
def test_epochs_shrink_and_validation_and_schedule_stay_alive(processes, tmp_path):
    ranks = job("plan", processes, FOLDER=str(tmp_path))
    assert len(ranks[0]["found"]) == (4 if processes == 1 else 3)
    for name in ranks[0]["found"]:
        rows = [rank["found"][name] for rank in ranks]
        kept = rows[0]["kept"]
        assert len(kept) == 120
        for epoch in range(5):
            expected = range(200) if epoch < 2 else kept
            drawn = [list(chain(*row["batches"][str(epoch)])) for row in rows]
            assert set().union(*drawn) == set(expected), name
            assert sum(map(len, drawn)) == len(expected)
            batches = -(-len(expected) // (16 * processes))
            assert {len(row["batches"][str(epoch)]) for row in rows} == {batches}
        for row in rows:
            assert row["validated"] == [0, 1, 2, 3, 4]
            assert row["steps"] == row["planned"] == (50 if processes == 1 else 26)
            assert row["lr"] == pytest.approx(0, abs=1e-9)
            assert row["kept"] == kept


@pytest.mark.parametrize("processes", [1, 2])
def test_every_checkpoint_leads_to_the_same_end(processes, tmp_path):
    for rank in job("resume", processes, FOLDER=str(tmp_path)):
        for found in rank["found"].values():
            whole = found["whole"]
            for epoch, rest in found["rest"].items():
                coming = {e: batches for e, batches in whole["batches"].items() if e > epoch}
                assert rest["batches"] == coming
                assert rest["losses"] == whole["losses"][-len(rest["losses"]) :]
                assert rest["validated"] == [int(e) for e in coming]
                for name in ("weights", "kept", "steps", "lr"):
                    assert rest[name] == whole[name], name


@pytest.mark.parametrize("processes", [1, 2])
def test_a_plan_without_last_batches(processes, tmp_path):
    for rank in job("dropped", processes, FOLDER=str(tmp_path)):
        found = rank["found"]
        steps = [len(batches) for batches in found["batches"].values()]
        # 159 kept samples are 80 on each of two processes, which is five batches of 16
        assert steps == ([12, 12, 9, 9, 9] if processes == 1 else [6, 6, 5, 5, 5])
        assert found["planned"] == found["steps"] == sum(steps)


def test_dry_runs_and_resuming_just_before_the_epochs_on_all_data(tmp_path):
    (found,) = job("odd", 1, FOLDER=str(tmp_path))
    assert found["dry"]["steps"] == 1
    whole, again = found["whole"], found["again"]
    assert [len(batches) for batches in whole.values()] == [13, 13, 8, 13, 13]
    assert again == {epoch: whole[epoch] for epoch in ("3", "4")}
    assert "the last batch of epoch 2, and the next epoch is longer" in found["refused"]


def test_a_second_fit_starts_anew_and_loggers_get_the_figures(tmp_path):
    (found,) = job("twice", 1, FOLDER=str(tmp_path))
    assert found["sizes"] == [200, 200, 120]
    with open(found["log"]) as file:
        rows = [row for row in csv.DictReader(file) if row.get("pruning/kept")]
    assert [(row["pruning/kept"], row["step"]) for row in rows] == [("120.0", "26")]
    assert float(rows[0]["pruning/shift"]) > 0

"""Under the Hugging Face Trainer: counts, schedule, accumulation and resuming, and what is refused."""

from functools import partial
from itertools import chain

import pytest
from conftest import run_job

job = partial(run_job, "transformers_jobs.py")


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_schedule_and_evaluations_are_those_of_the_plan(processes, tmp_path):
    ranks = job("plan", processes, FOLDER=str(tmp_path))
    full, pruned = (13, 8) if processes == 1 else (7, 4)
    for name in ranks[0]["found"]:
        rows = [rank["found"][name] for rank in ranks]
        constant, accumulate = name.startswith("constant"), int(name[-1])
        kept, later = rows[0]["kept"], full if constant else pruned
        assert len(kept) == 120
        for row in rows:
            assert len(row["batches"]) == 2 * full + 3 * later, name
            steps = 2 * -(-full // accumulate) + 3 * -(-later // accumulate)
            assert row["steps"] == row["max_steps"] == row["planned"] == steps, name
            assert row["lr"] == pytest.approx(0, abs=1e-9)
            assert row["evaluations"] == 5
            assert row["kept"] == kept
            assert row["epoch"] == 5 if constant else 4 < row["epoch"] < 5
            (logged,) = row["logged"]
            assert logged["pruning/kept"] == 120
            assert logged["step"] == 2 * -(-full // accumulate)
        first = set().union(*(chain(*row["batches"][: 2 * full]) for row in rows))
        assert first == set(range(200))
        for epoch in range(3):
            start = 2 * full + epoch * later
            drawn = [list(chain(*row["batches"][start : start + later])) for row in rows]
            assert set().union(*drawn) == set(kept)
            length = 200 if constant else 120  # accelerate fills the last batches up
            assert length <= sum(map(len, drawn)) <= 16 * processes * later


@pytest.mark.parametrize("processes", [1, 2])
def test_every_checkpoint_leads_to_the_same_end(processes, tmp_path):
    for rank in job("resume", processes, FOLDER=str(tmp_path)):
        whole = rank["whole"]
        for step, rest in rank["rest"].items():
            assert rest["batches"] == whole["batches"][int(step) :]
            for name in ("weights", "kept", "steps", "lr", "epoch"):
                assert rest[name] == whole[name], (step, name)
        ended, rest = rank["ended"], rank["rest of ended"]
        assert rest["batches"] == ended["batches"][-len(rest["batches"]) :]
        assert rest["weights"] == ended["weights"]


def test_a_second_training_starts_anew(tmp_path):
    (found,) = job("twice", 1, FOLDER=str(tmp_path))
    assert found["found"] == {"constant": [[65, 65]] * 2, "shrink": [[50, 50]] * 2}


def test_what_the_trainer_cannot_do_is_refused(tmp_path):
    (found,) = job("refusals", 1, FOLDER=str(tmp_path))
    for name, message in {
        "resume": "cannot be resumed once it is pruned; use InfluencePrunedSampler(..., epoch_length=",
        "missing": "has no pruning.safetensors: it was saved without this callback",
        "max_steps": "max_steps=30 is counted in full epochs",
        "accumulation": "gradient_accumulation_steps=3 does not divide the 8 batches",
        "fraction": "num_train_epochs=2.5 is not whole",
        "lengths": "train_sampling_strategy='group_by_length' would be lost",
        "batch size": "auto_find_batch_size=True changes the steps while it runs",
        "no mixin": "derive it from PruningTrainerMixin",
    }.items():
        assert message in found[name], name

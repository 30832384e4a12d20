from functools import partial

import pytest
import torch
from conftest import run_job

from prunesampler.distributed import LocalGroup, current_group

job = partial(run_job, "jobs.py")


def test_two_processes_score_every_sample_once_and_keep_what_one_keeps():
    (alone,) = job("select", 1)
    first, second = job("select", 2)
    assert sorted(alone["scored"]) == list(range(300))
    assert sorted(first["scored"] + second["scored"]) == list(range(300))
    assert abs(len(first["scored"]) - len(second["scored"])) <= 32
    assert first["kept"] == second["kept"] == alone["kept"]
    assert first["shift"] == second["shift"] == alone["shift"]
    assert len(alone["kept"]) == 180


def test_batch_norm_statistics_that_differ_between_ranks():
    (alone,) = job("select_after_uneven_buffers", 1)
    first, second = job("select_after_uneven_buffers", 2)
    assert first["kept"] == second["kept"] == alone["kept"]
    assert second["mean"] == pytest.approx(first["mean"] + 1)


def test_a_rank_without_a_batch():
    (alone,) = job("more_ranks_than_batches", 1)
    assert [line["kept"] for line in job("more_ranks_than_batches", 2)] == [alone["kept"]] * 2


@pytest.mark.parametrize("processes", [1, 2])
def test_scoring_leaves_the_losses_bitwise_as_they_were(processes):
    ranks = job("bitwise", processes)
    assert all(line["equal"] for line in ranks)
    assert len({tuple(line["losses"]) for line in ranks}) == processes


def test_a_trial_has_batches_like_those_of_a_selection():
    (alone,) = job("trial", 1)
    assert len(alone["kept"]) == 60
    assert [line["kept"] for line in job("trial", 2)] == [alone["kept"]] * 2


def test_plain_ranks_share_the_kept_set():
    first, second = job("plain_ranks", 2)
    assert first["kept"] == second["kept"]
    assert len(first["indices"]) == len(second["indices"]) == 31
    assert set(first["indices"]) | set(second["indices"]) == set(first["kept"])


def test_an_error_on_one_rank_is_raised_on_all():
    first, second = job("bad_sample", 2)
    assert first["error"].startswith("RuntimeError: rank 1 failed")
    assert "not finite for samples [40]" in second["error"]
    first, second = job("bad_budget", 2)
    assert "which lets at most" in first["error"]
    assert second["error"].startswith("RuntimeError: rank 0 failed")


def test_samplers_that_differ_are_refused_on_all_ranks():
    for line in job("different_seeds", 2):
        assert "the samplers differ between rank 0 and ranks [1]" in line["error"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("different_data", "the pruners"),
        ("different_models", "the models"),
        ("different_losses", "the measurements"),
    ],
)
def test_ranks_that_disagree_are_told_so(name, what):
    for line in job(name, 2):
        assert f"{what} differ between rank 0 and ranks [1]" in line["error"]


def test_a_sampler_that_refuses_on_one_rank():
    first, second = job("refused_on_one_rank", 2)
    assert first["error"].startswith("RuntimeError: rank 1 failed")
    assert "fewer than the batch of 200" in second["error"]


def test_one_process_needs_no_group():
    group = current_group()
    assert isinstance(group, LocalGroup)
    rows = torch.ones(2)
    assert group.gather(rows, [2]) == [rows]
    assert group.broadcast_bytes(b"x") == b"x"
    with pytest.raises(KeyError):
        group.raise_together(KeyError())

from itertools import chain

import pytest
import torch
from conftest import Jobs

from prunesampler.base.processes import LocalGroup, current_group

pytestmark = pytest.mark.slow
ALONE = [
    "select", "select_after_uneven_buffers", "more_ranks_than_batches", "bitwise", "trial", "stored",
    "sequences",
]  # fmt: skip
SEVERAL = [
    "plain_ranks", "bad_sample", "bad_budget", "bad_redraw", "different_seeds", "different_data", "different_pruners",
    "different_models", "different_losses", "refused_on_one_rank", "gathered", "no_room",
    "other_calls", "buffers", "sharded", "slow_solver", "device_only", "groups_made",
    "different_splits", "random_data", "without_replicas", "on_the_main_process_alone",
]  # fmt: skip
job = Jobs("group_jobs.py", {1: ALONE, 2: [*ALONE, *SEVERAL], 3: ["select", "gathered"]})


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_measure_every_sample_once_and_keep_what_one_keeps(processes):
    (alone,) = job("select", 1)
    ranks = job("select", processes)
    assert sorted(alone["measured"]) == list(range(300))
    assert sorted(chain(*(rank["measured"] for rank in ranks))) == list(range(300))
    parts = [len(rank["measured"]) for rank in ranks]
    assert max(parts) - min(parts) <= 32
    assert all(rank["kept"] == alone["kept"] for rank in ranks)
    assert all(rank["shift"] == alone["shift"] for rank in ranks)
    assert len(alone["kept"]) == 180


def test_batch_norm_statistics_that_differ_between_ranks():
    (alone,) = job("select_after_uneven_buffers", 1)
    first, second = job("select_after_uneven_buffers", 2)
    assert first["kept"] == second["kept"] == alone["kept"]
    assert second["mean"] == pytest.approx(first["mean"] + 1)


def test_measurements_on_a_disk_give_the_same_set_and_leave_nothing_there():
    (plain,), (alone,), ranks = job("select", 1), job("stored", 1), job("stored", 2)
    for line in (alone, *ranks):
        assert (line["kept"], line["shift"]) == (plain["kept"], plain["shift"])
        assert line["left"] == []
    assert alone["files"] > 0
    # A file for each tensor of a rank's part, and on rank 0 another for that of all ranks.
    assert [line["files"] for line in ranks] == [2 * alone["files"], alone["files"]]


def test_sequences_of_different_lengths_come_together():
    (alone,), ranks = job("sequences", 1), job("sequences", 2)
    assert len(alone["kept"]) == 54
    assert all((line["kept"], line["shift"]) == (alone["kept"], alone["shift"]) for line in ranks)


def test_a_rank_without_a_batch():
    (alone,) = job("more_ranks_than_batches", 1)
    assert [line["kept"] for line in job("more_ranks_than_batches", 2)] == [alone["kept"]] * 2


@pytest.mark.parametrize("processes", [1, 2])
def test_measuring_leaves_the_losses_bitwise_as_they_were(processes):
    ranks = job("bitwise", processes)
    assert all(line["equal"] for line in ranks)
    assert len({tuple(line["losses"]) for line in ranks}) == processes


def test_a_trial_has_batches_like_those_of_a_selection():
    (alone,) = job("trial", 1)
    assert len(alone["kept"]) == 60
    assert [line["kept"] for line in job("trial", 2)] == [alone["kept"]] * 2


@pytest.mark.parametrize("name", ["different_splits", "random_data"])
def test_samples_that_differ_between_ranks(name):
    for line in job(name, 2):
        assert "the samples of score_dataset differ between rank 0 and ranks [1]" in line["error"]


def test_processes_that_all_train_on_everything_are_told_so():
    for line in job("without_replicas", 2):
        (said,) = line["said"]
        assert "2 processes train, and the sampler hands all samples to each of them" in said
        assert "num_replicas=dist.get_world_size()" in said


def test_plain_ranks_share_the_kept_set():
    first, second = job("plain_ranks", 2)
    assert first["kept"] == second["kept"]
    assert len(first["indices"]) == len(second["indices"]) == 31
    assert set(first["indices"]) | set(second["indices"]) == set(first["kept"])


def test_an_error_on_one_rank_is_raised_on_all():
    first, second = job("bad_sample", 2)
    assert second["error"].startswith("ValueError: loss or gradient is not finite for samples [40]")
    assert first["error"] == f"RuntimeError: rank 1 failed while selecting: {second['error']}"
    first, second = job("bad_budget", 2)
    assert "which lets at most" in first["error"]
    assert second["error"] == f"RuntimeError: rank 0 failed while selecting: {first['error']}"


def test_scores_of_another_dataset_are_refused_on_all_ranks():
    first, second = job("bad_redraw", 2)
    assert "scores are of 200 samples, this dataset has 300" in first["error"]
    assert second["error"].startswith("RuntimeError: rank 0 failed")


def test_samplers_that_differ_are_refused_on_all_ranks():
    for line in job("different_seeds", 2):
        assert "the samplers differ between rank 0 and ranks [1]" in line["error"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("different_data", "the samples of score_dataset"),
        ("different_pruners", "the pruners"),
        ("different_models", "the models"),
        ("different_losses", "the measurements"),
    ],
)
def test_ranks_that_disagree_are_told_so(name, what):
    for line in job(name, 2):
        assert f"{what} differ between rank 0 and ranks [1]" in line["error"]


def test_models_that_were_never_wrapped_are_told_how():
    for line in job("different_models", 2):
        assert line["error"].endswith("or wrap the model in DistributedDataParallel")


def test_a_sampler_that_refuses_on_one_rank():
    first, second = job("refused_on_one_rank", 2)
    assert first["error"].startswith("RuntimeError: rank 1 failed")
    assert "fewer than the batch of 200" in second["error"]


@pytest.mark.parametrize("processes", [2, 3])
def test_rows_of_any_type_arrive_in_their_places(processes):
    for line in job("gathered", processes):
        assert len(line["found"]) == 21
        assert all(line["found"].values()), line["found"]


def test_no_memory_for_all_rows_on_rank_0():
    first, second = job("no_room", 2)
    assert "memory" in first["error"]
    assert second["error"] == f"RuntimeError: rank 0 failed while selecting: {first['error']}"


def test_solving_may_take_longer_than_training_may_wait():
    first, second = job("slow_solver", 2)
    assert first["kept"] == second["kept"] == job("select", 2)[0]["kept"]


def test_the_backend_of_the_training_does_not_matter():
    for line in job("device_only", 2):
        assert line["kept"] == job("select", 2)[0]["kept"]
        assert "No backend type associated with device type cpu" in line["refused"]


def test_one_group_is_made_when_the_first_is_needed():
    for line in job("groups_made", 2):
        assert line["made"] == [0, 1, 1, 1, 2]


def test_a_call_on_the_main_process_alone_ends_with_its_reason():
    first, second = job("on_the_main_process_alone", 2)
    for error, call in zip(first["errors"], ("frontier", "prunesampler"), strict=True):
        assert error.startswith(
            f"RuntimeError: {call} was called on rank 0 1 s ago, and not on ranks [1]"
        )
        assert "call it on all processes" in error
    assert len(first["seen"]) == 2
    assert first["seen"][0].startswith("frontier was called on rank 0 0 s ago")
    assert second["errors"] == ["none", "none"]
    assert first["kept"] == second["kept"] == job("select", 2)[0]["kept"]


def test_ranks_that_make_different_calls():
    for line in job("other_calls", 2):
        assert "the calls differ between rank 0 and ranks [1]" in line["error"]


def test_buffers_of_every_kind_are_equal_inside_and_as_before_outside():
    for line in job("buffers", 2):
        assert line["inside"] == [[[0, 1, 2, 3, 4]] * 3, [[0, 3], [1, 4], [2, 5]], 0]
        assert line["same"]


def test_sharded_models_are_refused_by_name():
    for line in job("sharded", 2):
        for error, name in zip(
            line["errors"], ("FullyShardedDataParallel", "DTensor"), strict=True
        ):
            assert error.startswith("ValueError: sharded models (FSDP, DTensor) are not supported")
            assert f"is a {name}" in error


def test_one_process_needs_no_group():
    group = current_group()
    assert isinstance(group, LocalGroup)
    rows = torch.ones(2)
    assert group.gather(rows, [torch.arange(2)]) is rows
    group.meet("select")
    assert group.broadcast_bytes(b"x") == b"x"
    with pytest.raises(KeyError):
        group.raise_together(KeyError())

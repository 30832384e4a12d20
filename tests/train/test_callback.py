import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from prunesampler import (
    Budget,
    InfluencePrunedSampler,
    InfluencePruner,
    PruningCallback,
    anneal,
    replace_sampler,
)
from prunesampler.base.files import pack_state

quick = partial(anneal, moves=5_000)


def make(data, budget=None, sampler_options=None, **options):
    sampler = InfluencePrunedSampler(data, **(sampler_options or {}))
    pruner = InfluencePruner(
        data, budget=budget or Budget(fraction=0.4), solver=quick, progress=False
    )
    return sampler, PruningCallback(sampler, pruner, **{"warmup_epochs": 2, **options})


def end(callback, epoch, model):
    """An epoch in which nothing is learned: one pass over the sampler, and its end."""
    callback.sampler.set_epoch(epoch)
    list(callback.sampler)
    return callback.on_epoch_end(epoch, model)


def run(callback, sampler, model, data, epochs, batch_size=16, drop_last=False):
    """Train; return the length of every epoch and the number of steps."""
    loader = DataLoader(data, batch_size, sampler=sampler, drop_last=drop_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    lengths, steps = [], 0
    for epoch in range(epochs):
        model.train()
        lengths.append(len(sampler))
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            steps += 1
        callback.on_epoch_end(epoch, model)
    return lengths, steps


@pytest.mark.parametrize(
    ("options", "lengths", "selections"),
    [
        ({}, [200, 200, 120, 120, 120, 120, 120], 1),
        ({"refresh_every": 2}, [200, 200, 120, 120, 120, 120, 120], 3),
        ({"refresh_every": 2, "epochs": 7}, [200, 200, 120, 120, 120, 120, 120], 3),
        ({"refresh_every": 2, "epochs": 6}, [200, 200, 120, 120, 120, 120], 2),
        ({"final_full_epochs": 2, "epochs": 7}, [200, 200, 120, 120, 120, 200, 200], 1),
        ({"final_full_epochs": 2, "epochs": 7, "refresh_every": 1},
         [200, 200, 120, 120, 120, 200, 200], 3),
    ],
)  # fmt: skip
def test_when_it_prunes_and_how_many_steps_it_plans(
    options, lengths, selections, model, few_digits
):
    found = []
    sampler, callback = make(few_digits, on_selection=found.append, **options)
    planned = callback.planned_steps(epochs=len(lengths), batch_size=16)
    assert run(callback, sampler, model, few_digits, len(lengths)) == (lengths, planned)
    assert len(found) == selections
    assert callback.selection is (found[-1] if found else None)


def test_a_run_as_short_as_its_warm_up_prunes_nothing_and_says_so(model, few_digits):
    with pytest.warns(UserWarning, match="nothing will be pruned: warmup_epochs=2 and final"):
        sampler, callback = make(few_digits, epochs=2)
    assert run(callback, sampler, model, few_digits, 2) == ([200, 200], 26)
    _, callback = make(few_digits)
    with pytest.warns(UserWarning, match="fill the run of 1 epochs"):
        assert callback.planned_steps(epochs=1, batch_size=16) == 13


def test_a_callback_that_joins_late_selects_at_once(model, few_digits):
    sampler, callback = make(few_digits, epochs=9)
    with pytest.warns(UserWarning, match="not called for epochs 0 to 4"):
        assert end(callback, 5, model) is not None
    assert end(callback, 6, model) is None
    assert len(sampler) == 120


def test_an_epsilon_plan_after_a_selection_that_prunes_nothing(model, few_digits):
    sampler, callback = make(few_digits, Budget(epsilon=0.0))
    run(callback, sampler, model, few_digits, 3)
    assert callback.planned_steps(epochs=4, batch_size=10) == 80


def test_resuming_with_refresh_and_last_epochs_on_all_data(model, few_digits):
    options = {"refresh_every": 2, "final_full_epochs": 2, "epochs": 8}
    sampler, callback = make(few_digits, **options)
    run(callback, sampler, model, few_digits, 3)
    resumed, again = make(few_digits, **options)
    resumed.load_state_dict(sampler.state_dict())
    selected = [end(again, epoch, model) is not None for epoch in (3, 4, 5, 6, 7)]
    assert selected == [True, False, False, False, False]
    assert len(resumed) == 200


def test_an_epsilon_plan_after_resuming(model, few_digits):
    sampler, callback = make(few_digits, Budget(epsilon=1e9, max_fraction=0.5))
    sampler.restrict(range(100))
    assert callback.planned_steps(epochs=4, batch_size=10) == 60


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("epoch_length", ["shrink", "constant"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_planned_steps_are_the_steps_taken(drop_last, epoch_length, replicas, model, few_digits):
    options = {"epoch_length": epoch_length, "num_replicas": replicas}
    sampler, callback = make(few_digits, sampler_options=options)
    _, steps = run(callback, sampler, model, few_digits, 4, 16, drop_last)
    assert steps == callback.planned_steps(epochs=4, batch_size=16, drop_last=drop_last)


def test_planned_steps_with_processes_and_accumulation(few_digits):
    _, callback = make(few_digits)
    # 200 samples are 13 batches, 7 on each of two processes, 3 steps of 3 batches;
    # 120 are 8, 4 and 2.
    assert callback.planned_steps(
        epochs=3, batch_size=16, num_processes=2, gradient_accumulation_steps=3
    ) == 2 * 3 + 2  # fmt: skip
    assert (
        callback.planned_steps(epochs=3, batch_size=16, num_processes=2, drop_last=True)
        == 6 + 6 + 3
    )


def test_planned_steps_of_an_epsilon_budget(model, few_digits):
    sampler, callback = make(few_digits, Budget(epsilon=1e9, max_fraction=0.5))
    with pytest.warns(UserWarning, match="upper bound, call it again in on_selection"):
        before = callback.planned_steps(epochs=4, batch_size=10)
    assert before == 80
    lengths, steps = run(callback, sampler, model, few_digits, 4, 10)
    assert lengths == [200, 200, 100, 100]
    assert steps == callback.planned_steps(epochs=4, batch_size=10) == 60


def test_the_log_line(model, few_digits, caplog):
    caplog.set_level(logging.INFO, "prunesampler")
    sampler, callback = make(few_digits)
    run(callback, sampler, model, few_digits, 2)
    (line,) = [record.message for record in caplog.records]
    for part in ("after epoch 1", "kept 120 of 200 samples (60.0%)", "by layer '4'", "to first order", "after a Newton step",
                 "random set", "measuring", "solving", "samples for each of the 153 parameters", "of the last epoch"):  # fmt: skip
        assert part in line, line


def test_with_progress_the_line_goes_to_the_terminal(model, few_digits, capsys):
    sampler = InfluencePrunedSampler(few_digits)
    pruner = InfluencePruner(few_digits, budget=Budget(count=9), solver=quick)
    PruningCallback(sampler, pruner, warmup_epochs=1).on_epoch_end(0, model)
    assert "kept 191" in capsys.readouterr().out


def test_a_resumed_run_needs_the_samplers_state_alone(model, few_digits):
    sampler, callback = make(few_digits)
    run(callback, sampler, model, few_digits, 3)
    resumed, again = make(few_digits)
    resumed.load_state_dict(sampler.state_dict())
    assert end(again, 3, model) is None
    assert torch.equal(resumed.kept, sampler.kept)
    resumed.set_epoch(3)
    assert list(resumed) == list(sampler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": 0}, "warmup_epochs must be at least 1, got 0"),
        ({"refresh_every": 0}, "refresh_every must be at least 1 or None, got 0"),
        ({"final_full_epochs": 1}, "final_full_epochs=1 with epochs=None"),
        ({"final_full_epochs": -1, "epochs": 3}, "final_full_epochs must be at least 0, got -1"),
    ],
)
def test_wrong_arguments(options, message, few_digits):
    with pytest.raises(ValueError, match=message):
        make(few_digits, **options)


def test_datasets_of_different_lengths(digits, few_digits):
    pruner = InfluencePruner(few_digits, budget=Budget(count=9))
    with pytest.raises(ValueError, match="score_dataset has 200 samples.*dataset 1797"):
        PruningCallback(InfluencePrunedSampler(digits), pruner)


def test_a_budget_that_leaves_less_than_a_batch_is_refused_before_training(few_digits):
    sampler = InfluencePrunedSampler(few_digits)
    replace_sampler(DataLoader(few_digits, 128, drop_last=True), sampler)
    pruner = InfluencePruner(few_digits, budget=Budget(fraction=0.4))
    with pytest.raises(ValueError, match="120 kept samples make 120 a rank, fewer than the batch"):
        PruningCallback(sampler, pruner)


def test_plans_without_batches_are_refused(few_digits):
    _, callback = make(few_digits)
    with pytest.raises(
        ValueError, match="epoch 2 would have no batch: 120 samples in batches of 128"
    ):
        callback.planned_steps(epochs=3, batch_size=128, drop_last=True)
    with pytest.raises(ValueError, match="must be at least 1"):
        callback.planned_steps(epochs=3, batch_size=0)
    _, callback = make(few_digits, epochs=7)
    with pytest.raises(ValueError, match="epochs=6, but the callback was made for epochs=7"):
        callback.planned_steps(epochs=6, batch_size=16)


def redrawing(data, model, epochs, start=0, state=None, **options):
    """Train from an epoch on, redrawing after each; the kept sets by epoch and the last states."""
    sampler, callback = make(
        data, warmup_epochs=1, redraw_every=1, sampler_options=options.pop("sampler_options", None),
        **options,
    )  # fmt: skip
    if state is not None:
        sampler.load_state_dict(state[0])
        if state[1] is not None:
            callback.load_state_dict(state[1])
    kept = []
    for epoch in range(start, epochs):
        end(callback, epoch, model)
        kept.append(sampler.kept.tolist())
    return kept, (sampler.state_dict(), callback.state_dict())


@pytest.mark.parametrize("mode", ["shrink", "constant"])
def test_redraws_bring_everybody_back(mode, model, few_digits):
    kept, _ = redrawing(few_digits, model, 8, sampler_options={"epoch_length": mode})
    assert all(len(part) == 120 for part in kept)
    assert len({tuple(part) for part in kept}) > 4
    for k in range(6):
        assert set().union(*kept[k : k + 3]) == set(range(200))


def test_measurements_in_a_file_of_their_own(model, few_digits, tmp_path):
    whole, _ = redrawing(few_digits, model, 8)
    folder = tmp_path / "scores"
    _, (_, inside) = redrawing(few_digits, model, 3)
    _, state = redrawing(few_digits, model, 3, scores_dir=folder)
    assert len(pack_state(state[1])) < len(pack_state(inside)) / 10
    rest, _ = redrawing(few_digits, model, 8, start=3, state=state, scores_dir=folder)
    assert rest == whole[3:]
    (file,) = folder.iterdir()  # written once
    with pytest.raises(ValueError, match=r"in a file of their own, scores-.*give the callback the"):
        redrawing(few_digits, model, 8, start=3, state=state)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="is damaged: its content is not what its name says"):
        redrawing(few_digits, model, 8, start=3, state=state, scores_dir=folder)
    file.unlink()
    with pytest.raises(ValueError, match="is not there, which holds the measurements"):
        redrawing(few_digits, model, 8, start=3, state=state, scores_dir=folder)


def test_a_folder_that_cannot_be_written_to(model, few_digits, tmp_path):
    (tmp_path / "file").touch()
    options = {"on_error": "continue", "scores_dir": tmp_path / "file"}
    with pytest.warns(UserWarning, match="PRUNING FAILED after epoch 0.*Error"):
        _, (_, state) = redrawing(few_digits, model, 3, **options)
    assert state["redraws"]["file"] is None
    redrawing(few_digits, model, 5, start=3, state=(state["sampler"], state), **options)


def test_redraws_between_measurements(model, few_digits, caplog):
    caplog.set_level(logging.INFO, "prunesampler")
    passes = []
    model.register_forward_hook(lambda *a: passes.append(len(a[2])))
    _, callback = make(few_digits, warmup_epochs=2, refresh_every=4, redraw_every=2, epochs=12)
    for epoch in range(12):
        end(callback, epoch, model)
    lines = [record.message for record in caplog.records]
    again = ["drawn again" in line for line in lines]
    assert again == [False, True, False, True, False]
    assert 4 * 200 <= sum(passes) <= 4 * 210  # a trial of one batch, and three measurements


def test_a_resumed_run_draws_the_same_sets(model, few_digits, tmp_path):
    whole, _ = redrawing(few_digits, model, 7)
    _, state = redrawing(few_digits, model, 3)
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    with torch.no_grad():
        model[4].weight.zero_()  # the scores are those of the checkpoint, not of this model
    rest, _ = redrawing(few_digits, model, 7, start=3, state=state)
    assert rest == whole[3:]


def test_a_resumed_run_without_the_callbacks_state_measures_again(model, few_digits):
    kept, state = redrawing(few_digits, model, 3)
    rest, _ = redrawing(few_digits, model, 4, start=3, state=(state[0], None))
    assert set(kept[-1]) | set(rest[0]) == set(range(200))


def test_a_checkpoint_saved_too_early_is_said_and_can_be_caught_up_on(model, few_digits):
    whole, callback = make(few_digits)
    end(callback, 0, model)
    early = callback.state_dict()  # of epoch 1, saved before its end
    end(callback, 1, model)
    sampler, again = make(few_digits)
    again.load_state_dict(early)
    message = r"loaded is 2, but 1 epochs had ended.*needs pruning.catch_up\(epoch, model\)"
    with pytest.raises(ValueError, match=message):
        end(again, 2, model)
    sampler, again = make(few_digits)
    again.load_state_dict(early)
    assert again.catch_up(2, model) is not None
    assert torch.equal(sampler.kept, whole.kept)
    assert again.catch_up(2, model) is None
    assert end(again, 2, model) is None


def test_what_cannot_be_scored_is_found_in_the_first_epoch(model, few_digits):
    x, y = few_digits.tensors
    ragged = [
        (image[: 60 + i % 3], label) for i, (image, label) in enumerate(zip(x, y, strict=True))
    ]
    pruner = InfluencePruner(ragged, budget=Budget(fraction=0.4), progress=False)
    callback = PruningCallback(InfluencePrunedSampler(few_digits), pruner, warmup_epochs=5)
    with pytest.raises(RuntimeError, match="equal size") as caught:
        callback.on_epoch_end(0, model)
    if hasattr(caught.value, "__notes__"):
        assert "put together by collate_fn=" in caught.value.__notes__[0]


def test_states_of_the_callback_that_do_not_fit(model, few_digits):
    _, (_, state) = redrawing(few_digits, model, 1)
    _, callback = make(few_digits, redraw_every=1)
    redraws, n = state["redraws"], {**state["sampler"], "n": 7}
    scores = redraws["scores"]
    for wrong, message in [
        ({}, "missing"),
        ({**state, "version": 9}, "version 9"),
        ({**state, "epochs_ended": None}, "epochs_ended must be a whole number"),
        ({**state, "sampler": n}, "of a dataset of 7 samples"),
        *(
            ({**state, "redraws": part}, message)
            for part, message in [
                ({}, "missing"),
                ({**redraws, "ages": torch.zeros(3)}, "ages are not 200 whole numbers"),
                ({**redraws, "rank": 1}, "saved on rank 1; load the one of rank 0"),
                ({**redraws, "scores": {**scores, "hessian": "Path"}}, "not the measurements"),
                (
                    {**redraws, "scores": {**scores, "delta": scores["delta"][:5]}},
                    "not of the 200 samples",
                ),
                ({**redraws, "scores": {**scores, "losses": scores["losses"] / 0}}, "not finite"),
            ]
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            callback.load_state_dict(wrong)
        assert len(callback.sampler.kept) == 200
    assert callback.state_dict()["redraws"]["scores"] is None


def test_redraw_every_must_be_a_number_of_epochs(few_digits):
    with pytest.raises(ValueError, match="redraw_every must be at least 1 or None, got 0"):
        make(few_digits, redraw_every=0)

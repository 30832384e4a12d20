"""What the integrations share: versions, objects that come late, and what the core is told."""

import pytest

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner
from prunesampler.integrations import common
from prunesampler.integrations.common import HoldsPruning, require


@pytest.fixture
def objects(few_digits):
    pruner = InfluencePruner(few_digits, budget=Budget(fraction=0.4), progress=False)
    return InfluencePrunedSampler(few_digits), pruner


@pytest.mark.parametrize(
    "installed",
    ["2.4", "2.4.0rc1", "2.4rc1", "2.4.0.dev0", "v2.5", "2.10", "3", "3b2", "2.4+local", "main"],
)
def test_candidates_and_builds_of_a_version_are_new_enough(installed, monkeypatch):
    monkeypatch.setattr(common, "version", lambda package: installed)
    require(("lightning",), "2.4", "lightning")


@pytest.mark.parametrize("installed", ["2.3.9", "2.3rc1", "1.9", "2", "0.1.dev7+g12ab"])
def test_older_versions_are_refused(installed, monkeypatch):
    monkeypatch.setattr(common, "version", lambda package: installed)
    with pytest.raises(ImportError, match=r"is too old: .*needs 2.4 or newer; pip install"):
        require(("lightning",), "2.4", "lightning")


def test_what_is_not_there_is_named():
    with pytest.raises(ImportError, match=r"needs no-such-package, which is not installed; pip"):
        require(("no-such-package",), "1.0", "lightning")


def test_the_core_knows_that_a_framework_has_the_samples_and_the_state(objects):
    assert HoldsPruning(*objects).pruning.managed
    late = HoldsPruning(lambda trainer: objects[0], lambda trainer: objects[1])
    late.meet("a trainer")
    assert late.pruning.managed


@pytest.mark.parametrize("late", [False, True])
def test_a_wrong_on_error_is_refused_at_once(late, objects):
    given = [lambda trainer: objects[0], objects[1]] if late else objects
    with pytest.raises(ValueError, match=r"on_error must be 'raise' or 'continue', got 'ignore'"):
        HoldsPruning(*given, on_error="ignore")


def test_wrong_numbers_are_refused_at_once_with_functions_too(objects):
    with pytest.raises(ValueError, match=r"warmup_epochs must be at least 1"):
        HoldsPruning(lambda trainer: objects[0], objects[1], warmup_epochs=0)


def test_functions_wait_for_the_trainer_and_are_called_once_a_run(objects):
    calls = []

    def sampler(trainer):
        calls.append(trainer)
        return objects[0]

    holds = HoldsPruning(sampler, objects[1], warmup_epochs=1)
    assert holds.selection is None
    assert holds.state_dict() == {}
    with pytest.raises(RuntimeError, match=r"is a function of the trainer, which is not known"):
        _ = holds.pruning
    holds.meet("first")
    assert calls == []
    assert holds.sampler is objects[0]
    assert holds.pruning is holds.pruning
    assert calls == ["first"]
    holds.begin_run(anew=True)
    holds.meet("second")
    assert holds.pruning.sampler is objects[0]
    assert calls == ["first", "second"]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("made", [None, "a text"])
def test_functions_that_return_something_else_are_refused(place, made, objects):
    given = list(objects)
    given[place] = lambda trainer: made
    holds = HoldsPruning(*given)
    holds.meet("a trainer")
    name = ["InfluencePrunedSampler", "InfluencePruner"][place]
    with pytest.raises(TypeError, match=rf"takes an {name}, or a function .* got {made!r}"):
        _ = holds.pruning
    given[place] = made
    with pytest.raises(TypeError, match=rf"takes an {name}, or a function .* got {made!r}"):
        HoldsPruning(*given)


def test_what_comes_before_the_objects_reaches_them(objects, model):
    whole = HoldsPruning(*objects, warmup_epochs=1)
    whole.pruning.on_epoch_end(0, model)
    state, kept = whole.state_dict(), whole.sampler.kept

    other = InfluencePrunedSampler(objects[0].dataset)
    late = HoldsPruning(lambda trainer: other, objects[1], warmup_epochs=1, on_error="continue")
    late.load_state_dict(state)
    assert late.state_dict() == state
    late.expect_epochs(7)
    late.log_to(print)
    assert len(other.kept) == 200
    late.meet("a trainer")
    assert late.pruning.plan.epochs == 7
    assert late.pruning.log is print
    assert other.kept.tolist() == kept.tolist()
    late.expect_epochs(None)
    assert late.pruning.plan.epochs is None


def test_measurements_go_into_a_folder_of_their_own(objects, model, tmp_path):
    holds = HoldsPruning(*objects, warmup_epochs=1, redraw_every=1, scores_dir=tmp_path)
    holds.pruning.on_epoch_end(0, model)
    assert holds.state_dict()["redraws"]["scores"] is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_that_goes_on_keeps_its_state_with_new_objects(objects, model):
    made = []

    def sampler(trainer):
        made.append(InfluencePrunedSampler(objects[0].dataset))
        return made[-1]

    holds = HoldsPruning(sampler, objects[1], warmup_epochs=1)
    holds.meet("a trainer")
    holds.pruning.on_epoch_end(0, model)
    selection = holds.selection
    holds.begin_run(anew=False)
    assert holds.sampler is made[1]
    assert made[1].kept.tolist() == selection.kept.tolist()
    assert holds.selection is selection
    holds.begin_run(anew=True)
    assert len(holds.sampler.kept) == len(made[1].kept) == 200
    assert holds.selection is None

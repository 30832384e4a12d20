"""A page after every selection of a run, which never stops it."""

import gc
import logging
import random
import sys
import warnings
import weakref

import pytest
import torch
from html_checks import checked
from recording import Loop
from torch.utils.data import TensorDataset

from prunesampler import (
    Budget,
    InfluencePrunedSampler,
    InfluencePruner,
    PruningCallback,
    Selection,
    TrajectoryPruner,
)
from prunesampler.select.moment import Moment, plan_section


def data(n=60):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, torch.arange(n) % 3)


def run(dataset, epochs=4, learns=True, **options):
    """Epochs at whose end a model has moved; returns the kept sets before each."""
    torch.manual_seed(0)
    sampler, model = InfluencePrunedSampler(dataset), torch.nn.Linear(4, 3)
    pruner = InfluencePruner(dataset, budget=Budget(fraction=0.4), progress=False)
    pruning = PruningCallback(sampler, pruner, warmup_epochs=1, epochs=epochs, **options)
    kept = []
    for epoch in range(epochs):
        kept.append(list(sampler))
        with torch.no_grad():
            model.weight += learns * torch.randn(3, 4)
        pruning.on_epoch_end(epoch, model)
    return kept


def pages(folder):
    """What is in every page, by its name."""
    found = sorted(folder.iterdir())
    return {path.name: checked(path.read_text(encoding="utf-8")) for path in found}


@pytest.mark.parametrize("options", [{}, {"refresh_every": 1}, {"redraw_every": 1}])
def test_there_is_a_page_for_every_selection_and_the_run_is_the_same(options, tmp_path):
    dataset = data()
    assert run(dataset, report=tmp_path / "new" / "pages", **options) == run(dataset, **options)
    found = pages(tmp_path / "new" / "pages")
    often = 3 if options else 1
    assert list(found) == [f"epoch-000{epoch}.html" for epoch in range(often)]
    for number, seen in enumerate(found.values()):
        assert f"Selection · After epoch {number}" in seen.text
        assert "Kept share per class" in seen.text  # so it knows the scores
        assert ("the epoch before it" in seen.text) == (
            number > 0
        )  # the first is not seen to begin
        assert ("Against the set before" in seen.text) == (number > 0)
        left = 3 - number  # epochs of 36 of the 60 samples
        how = "epoch that is left has" if left == 1 else "epochs that are left have"
        told = f"The {left} {how} {36 * left} samples together, 60\N{NO-BREAK SPACE}% of what"
        assert told in seen.text


def test_what_changed_is_counted(tmp_path):
    kept = run(data(), report=tmp_path, refresh_every=1)
    html = checked((tmp_path / "epoch-0001.html").read_text())
    before, after = set(kept[1]), set(kept[2])
    (drawing,) = [
        svg["aria-label"] for svg in html.of("svg") if "came back" in svg["aria-label"]
    ]  # fmt: skip
    counts = {
        "kept again": len(before & after),
        "came back": len(after - before),
        "left out now": len(before - after),
        "left out again": 60 - len(before | after),
    }
    assert all(f"{name} {size}, " in drawing for name, size in counts.items())
    assert sum(counts.values()) == 60


def test_a_trajectory_has_pages_too(tmp_path):
    loop = Loop()
    pruner = TrajectoryPruner(loop.recorder, budget=Budget(fraction=0.4), progress=False)
    pruning = PruningCallback(
        loop.sampler, pruner, warmup_epochs=1, refresh_every=1, report=tmp_path
    )
    for epoch in range(2):
        loop.epoch(end=False)
        pruning.on_epoch_end(epoch, loop.model)
    found = pages(tmp_path)
    assert len(found) == 2
    assert all("Headroom" in seen.text for seen in found.values())
    assert all("Plan of the run" not in seen.text for seen in found.values())  # its end is unknown


class Broken(TensorDataset):
    """Measured without complaint, and not to be shown."""

    @property
    def classes(self):
        raise RuntimeError("no names today")


def test_samples_that_cannot_be_shown_are_no_failure(tmp_path):
    run(Broken(*data().tensors), report=tmp_path)
    assert len(pages(tmp_path)) == 1


def test_a_page_that_cannot_be_written_is_one_warning(tmp_path):
    dataset = data()
    (tmp_path / "pages").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="no page .*epoch-0000.html: .*training goes on") as seen:
        kept = run(dataset, report=tmp_path / "pages", refresh_every=1)
    assert len(seen) == 1
    assert kept == run(dataset, refresh_every=1)


def test_a_tracker_that_takes_no_text_is_no_failure(tmp_path):
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    class Numbers(GeneralTracker):
        name, requires_logging_directory = "numbers", False

        def __init__(self):
            super().__init__()
            self.held = []

        @property
        def tracker(self):
            return self.held

        def store_init_configuration(self, values):
            pass

        def log(self, values, step, **options):
            self.held.append({name: float(value) for name, value in values.items()})

    tracker = Numbers()
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("run")
    with pytest.warns(
        UserWarning, match="did not take the path .*could not convert string to float"
    ):
        run(data(), report=tmp_path, accelerator=accelerator)
    assert len(tracker.held) == 1
    assert len(pages(tmp_path)) == 1


def test_without_the_extra_it_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"prunesampler\[report\]"):
        run(data(), report=tmp_path)


def test_the_log_names_the_page(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "prunesampler"), warnings.catch_warnings():
        run(data(), report=tmp_path)
    assert f"Page: {tmp_path / 'epoch-0000.html'}" in caplog.text


def test_a_plan_of_many_changes_shows_the_first():
    section = plan_section(Moment(3, 1.0, None, tuple(range(1, 101)), None), 100)
    assert section.charts[0].drawing.count("samples each") >= 12
    assert "epoch 4" in section.charts[0].drawing
    assert "The 100 epochs that are left have 5,050 samples" in section.sentences[0]
    assert plan_section(Moment(3, 1.0, None, (), None), 100) is None


def test_the_plan_knows_epochs_of_constant_length(tmp_path):
    dataset = data()
    sampler = InfluencePrunedSampler(dataset, epoch_length="constant")
    pruner = InfluencePruner(dataset, budget=Budget(fraction=0.4), progress=False)
    pruning = PruningCallback(sampler, pruner, warmup_epochs=1, epochs=4, report=tmp_path)
    list(sampler)
    pruning.on_epoch_end(0, torch.nn.Linear(4, 3))
    (seen,) = pages(tmp_path).values()
    assert "The 3 epochs that are left have 180 samples together" in seen.text


def test_a_pruner_of_its_own_kind_chooses_as_without_pages(tmp_path):
    class Last(InfluencePruner):
        def select(self, model):
            self.measure(model)
            return Selection(
                torch.arange(40, 60), 60, float("nan"), float("nan"), None, self.budget
            )

    sampler = InfluencePrunedSampler(dataset := data())
    pruner = Last(dataset, budget=Budget(count=20), progress=False)
    pruning = PruningCallback(sampler, pruner, warmup_epochs=1, report=tmp_path)
    list(sampler)
    pruning.on_epoch_end(0, torch.nn.Linear(4, 3))
    assert sampler.kept.tolist() == list(range(40))
    (seen,) = pages(tmp_path).values()
    assert "Kept share per class" in seen.text  # it measured
    assert "nan" not in seen.text
    assert pruner.heard is None


class Here(TensorDataset):
    """Knows in which process it was read, and draws from a source that nobody restores."""

    source = random.Random(0)
    read = 0

    def __getitem__(self, index):
        type(self).read += 1
        self.source.random()
        return super().__getitem__(index)


def test_where_workers_read_this_process_leaves_the_dataset_alone(tmp_path):
    dataset = Here(*data().tensors)
    state = Here.source.getstate()
    sampler = InfluencePrunedSampler(dataset)
    pruner = InfluencePruner(dataset, budget=Budget(count=20), num_workers=1, progress=False)
    pruning = PruningCallback(sampler, pruner, warmup_epochs=1, report=tmp_path)
    list(sampler)
    model, random_state = torch.nn.Linear(4, 3), torch.get_rng_state()
    pruning.on_epoch_end(0, model)
    assert (Here.read, Here.source.getstate()) == (0, state)
    assert torch.equal(torch.get_rng_state(), random_state)
    (seen,) = pages(tmp_path).values()
    assert "Samples that are kept" in seen.text
    assert "could not be read" not in seen.text


@pytest.mark.parametrize("folder", ["x" * 300, "in\N{NULL}it"])
def test_a_name_that_no_disk_takes_is_one_warning(folder, tmp_path):
    with pytest.warns(UserWarning, match="no page .*training goes on") as seen:
        kept = run(data(), report=tmp_path / folder, refresh_every=1)
    assert len(seen) == 1
    assert kept == run(data(), refresh_every=1)


def test_a_terminal_that_cannot_say_the_name_is_no_failure(tmp_path, monkeypatch):
    def deaf(text, progress):
        if text.startswith("Page"):
            raise UnicodeEncodeError("ascii", text, 0, 1, "no such letter")

    monkeypatch.setattr("prunesampler.train.announcing.tell", deaf)
    with pytest.warns(UserWarning, match="is not told of: UnicodeEncodeError"):
        run(data(), report=tmp_path)
    assert len(pages(tmp_path)) == 1


def test_scores_are_not_held_when_choosing_fails(tmp_path):
    held = []

    class Broken(InfluencePruner):
        def select(self, model):
            held.append(weakref.ref(self.measure(model)))
            raise RuntimeError("no choice")

    sampler = InfluencePrunedSampler(dataset := data())
    pruner = Broken(dataset, budget=Budget(count=20), progress=False)
    pruning = PruningCallback(
        sampler, pruner, warmup_epochs=1, report=tmp_path, on_error="continue"
    )
    list(sampler)
    with pytest.warns(UserWarning, match="PRUNING FAILED"):
        pruning.on_epoch_end(0, torch.nn.Linear(4, 3))
    gc.collect()
    assert held[0]() is None


def test_a_redraw_counts_only_what_it_did(tmp_path):
    run(data(), report=tmp_path, redraw_every=1)
    first, second, _ = pages(tmp_path).values()
    assert "measuring" in first.text
    assert "measuring" not in second.text.split("How it was made")[0]

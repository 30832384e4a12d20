"""A page after every selection of a run, which never stops it."""

import logging
import warnings

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
        assert ("of the epoch before it" in seen.text) == (
            number > 0
        )  # the first is not seen to begin
        assert ("Against the set before" in seen.text) == (number > 0)
        # 60 samples in the first of four epochs, and 36 in the others.
        assert (
            "The 4 epochs of the run have 168 samples together, 70\N{NO-BREAK SPACE}%" in seen.text
        )


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
    with pytest.warns(UserWarning, match="could not convert string to float"):
        run(data(), report=tmp_path, accelerator=accelerator)
    assert len(tracker.held) == 1
    assert len(pages(tmp_path)) == 1


def test_without_the_extra_it_is_said_at_once(tmp_path, monkeypatch):
    import sys

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
    assert "The 100 epochs of the run have 5,050 samples" in section.sentences[0]
    assert plan_section(Moment(3, 1.0, None, (), None), 100) is None

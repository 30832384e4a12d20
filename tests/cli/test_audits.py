"""The command line: audits, and pages of them and of selections."""

import re
import sys
from pathlib import Path

import pytest
import torch
from cli_files import fill, invoke, refused, said, scores_of
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from prunesampler import (
    Audit,
    Budget,
    InfluencePrunedSampler,
    InfluencePruner,
    PruningCallback,
    Scores,
    Selection,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file of every kind, all of the same 60 samples."""
    folder = tmp_path_factory.mktemp("files")
    fill(folder)
    return folder


@pytest.fixture
def run(files, monkeypatch):
    """Run a command in that folder."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "400")
    return invoke


def test_audit_is_the_table_of_the_audit(run, files):
    scores = Scores.load(files / "scores")
    for wanted, given_more in ((None, ()), ("wanted", ("--wanted", "wanted"))):
        audit = scores.audit(None if wanted is None else Scores.load(files / wanted))
        text = said(run("audit", "scores", *given_more))
        for line in str(audit).splitlines()[2:]:
            cells = [cell for cell in line[2:-2].split(" | ") if cell]
            assert " ".join(cells) in text


def test_audit_wants_scores(run):
    assert "selection holds a selection; give a file that Scores.save wrote" in refused(
        run("audit", "selection")
    )
    assert "trajectory holds a trajectory" in refused(
        run("audit", "scores", "--wanted", "trajectory")
    )
    assert "layer" in refused(run("audit", "scores", "--wanted", "other"))


@pytest.fixture
def asked(monkeypatch):
    """What the methods that write a page were asked for."""
    calls = []

    def page(self, path, dataset=None, scores=None):
        Path(path).write_text("a page")
        calls.append((self, dataset, scores))

    monkeypatch.setattr(Selection, "report", page, raising=False)
    monkeypatch.setattr(Audit, "report", page, raising=False)
    return calls


@pytest.fixture
def photos(tmp_path):
    """Sixty images of two classes."""
    from PIL import Image

    for i in range(60):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return tmp_path / "photos"


def test_report_asks_for_a_page_with_scores_and_images(run, asked, photos, tmp_path):
    page = tmp_path / "page.html"
    found = run("report", "selection", "-o", page, "--scores", "scores", "--images", photos)
    assert said(found) == f"wrote {page}\n"
    assert page.read_text() == "a page"
    ((selection, dataset, scores),) = asked
    assert isinstance(selection, Selection)
    assert isinstance(dataset, ImageFolder)
    assert isinstance(scores, Scores)


def test_report_of_scores_is_one_of_their_audit(run, asked, tmp_path):
    said(run("report", "scores", "-o", tmp_path / "page.html"))
    ((audit, dataset, scores),) = asked
    assert isinstance(audit, Audit)
    assert dataset is None
    assert scores is None


def test_report_writes_the_page(run, photos, tmp_path):
    for file in ("selection", "other selection", "scores"):
        for more in ((), ("--images", photos)):
            page = tmp_path / f"{file} {len(more)}.html"
            said(run("report", file, "-o", page, *more))
            assert page.read_text().lower().startswith("<!doctype html>")


def test_report_refuses_other_files_and_other_images(run, photos, tmp_path):
    page = ("-o", tmp_path / "page.html")
    assert "a report is of a selection or of scores" in refused(run("report", "trajectory", *page))
    assert "nowhere" in refused(run("report", "scores", *page, "--images", tmp_path / "nowhere"))
    (photos / "a" / "0.png").unlink()
    text = refused(run("report", "scores", *page, "--images", photos))
    assert "59" in text
    assert "60" in text
    assert "there" in refused(run("report", "scores", "-o", tmp_path / "none" / "page.html"))
    text = refused(run("report", "scores", *page, "--scores", "scores"))
    assert text.endswith(
        "--scores is for a report of a selection, and scores holds scores; leave it out"
    )
    text = refused(run("report", "selection", *page, "--scores", "selection"))
    assert "selection holds a selection; give a file that Scores.save wrote" in text
    assert not (tmp_path / "page.html").exists()


def test_images_need_torchvision(run, monkeypatch, photos, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    text = refused(run("report", "scores", "-o", tmp_path / "page.html", "--images", photos))
    assert text.endswith("--images needs torchvision: pip install torchvision")


def pool(junk):
    """Samples whose class can be seen, and at the end as many of a random class as there is junk."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(240) % 3
    x = 3 * nn.functional.one_hot(y, 16) + torch.randn(240, 16, generator=generator)
    if junk:
        y[-junk:] = torch.randint(0, 3, (junk,), generator=generator)
        x[-junk:] = torch.randn(junk, 16, generator=generator)
    return TensorDataset(x, y)


@pytest.fixture(scope="module")
def sure(tmp_path_factory):
    """A folder with scores of a pool with 80 samples of junk, and of samples that are sure."""
    folder, layer = tmp_path_factory.mktemp("sure"), nn.Linear(16, 3)
    with torch.no_grad():
        layer.weight.copy_(0.5 * torch.eye(3, 16))
        layer.bias.zero_()
    for name, junk in (("pool", 80), ("wanted", 0)):
        scores_of(pool(junk), layer)[1].save(folder / name)
    return folder


def test_wanted_samples_find_what_is_off_target(run, sure, tmp_path):
    found = Scores.load(sure / "pool").audit(Scores.load(sure / "wanted")).off_target
    assert int((found.indices >= 160).sum()) > 30
    text = said(run("audit", sure / "pool", "--wanted", sure / "wanted"))
    assert re.search(rf"^ off-target {len(found)} ", text, re.M)
    assert re.search(r"^ off-target 0 ", said(run("audit", sure / "pool")), re.M)


def test_the_page_of_an_audit_is_of_the_wanted_samples_too(run, sure, tmp_path):
    scores, wanted = Scores.load(sure / "pool"), Scores.load(sure / "wanted")
    for name, more, known in (("a", (), None), ("b", ("--wanted", sure / "wanted"), wanted)):
        said(run("report", sure / "pool", "-o", tmp_path / name, *more))
        scores.audit(known).report(tmp_path / f"{name} known")
        assert (tmp_path / name).read_text() == (tmp_path / f"{name} known").read_text()
    assert "are off-target" in (tmp_path / "b").read_text()
    assert "are off-target" not in (tmp_path / "a").read_text()


def test_of_wanted_samples_no_curvature_is_needed(run, tmp_path):
    for command in (("audit", "scores"), ("report", "scores", "-o", tmp_path / "page")):
        said(run(*command, "--wanted", "mine"))


@pytest.mark.parametrize("command", [("audit", "scores"), ("report", "scores", "-o", "page.html")])
@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("selection", "selection holds a selection; give a file that Scores.save wrote"),
        ("trajectory", "trajectory holds a trajectory; give a file that Scores.save wrote"),
        ("other", "measured at a layer of 16 inputs and 3 outputs, the pool at one of 17 and 3"),
        ("nowhere", "nowhere: No such file or directory"),
    ],
)
def test_wanted_samples_that_do_not_fit_are_refused(run, files, command, wanted, text):
    assert text in refused(run(*command, "--wanted", wanted))
    assert not (files / "page.html").exists()


def test_wanted_samples_are_not_for_a_selection(run, tmp_path):
    text = refused(run("report", "selection", "-o", tmp_path / "page.html", "--wanted", "wanted"))
    assert text.endswith(
        "--wanted is for a report of scores, and selection holds a selection; leave it out"
    )
    assert not list(tmp_path.iterdir())


def test_the_head_of_the_table_is_that_of_the_audit(run):
    assert re.search(r"^ 60 samples found share *$", said(run("audit", "scores")), re.M)


@pytest.mark.parametrize(
    "command", [("audit", "scores"), ("diff", "selection", "selection"), ("show", "selection")]
)
def test_a_narrow_terminal_shows_every_word(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "400")
    wide = said(run(*command)).split()
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run(*command).stdout
    assert all(len(line) <= 40 for line in narrow.splitlines())
    assert "\N{HORIZONTAL ELLIPSIS}" not in narrow
    words = {word for word in wide if len(word) < 12 and "\u2500" not in word}
    assert words <= {word.removesuffix(":") for word in narrow.split()} | set(narrow.split())


def test_the_scores_that_a_callback_writes_are_read(run, tmp_path):
    data = pool(0)
    sampler = InfluencePrunedSampler(data)
    pruner = InfluencePruner(data, budget=Budget(fraction=0.4), progress=False)
    folder = tmp_path / "runs"
    callback = PruningCallback(
        sampler, pruner, warmup_epochs=1, redraw_every=1, epochs=3, scores_dir=folder
    )
    torch.manual_seed(1)
    layer = nn.Linear(16, 3)
    callback.on_epoch_end(0, layer)
    (file,) = folder.iterdir()
    pruner.measure(layer).save(tmp_path / "same")
    assert "samples 240" in said(run("show", file))
    for command in (("audit",), ("export", "--csv")):
        known = said(run(command[0], tmp_path / "same", *command[1:]))
        assert said(run(command[0], file, *command[1:])).splitlines()[1:] == known.splitlines()[1:]
    assert "other labels 0 (0 %)" in said(run("diff", file, tmp_path / "same"))
    said(run("report", file, "-o", tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text().lower().startswith("<!doctype html>")

"""The scores that a callback writes beside its checkpoints: they are files as `Scores.save` writes them."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import Budget, ExactCurvature, InfluencePruner, Scores, Target
from prunesampler.base.files import pack_state
from prunesampler.train.redraws import Redraws

X = 3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X[:, :3].argmax(1))  # the features tell the class


def drawn(folder, **options):
    """Redraws that drew once, their model and pruner."""
    pruner = InfluencePruner(DATA, budget=Budget(fraction=0.4), progress=False, **options)
    redraws, model = Redraws(pruner, folder), nn.Linear(5, 3)
    redraws.draw(model, torch.arange(60), measure=True)
    return redraws, model, pruner


@pytest.mark.parametrize(
    "options", [{}, {"objective": Target(DATA)}, {"curvature": ExactCurvature(damping=0.3)}]
)
def test_they_are_what_save_writes(tmp_path, options):
    _, model, pruner = drawn(tmp_path / "runs", **options)
    (file,) = (tmp_path / "runs").iterdir()
    pruner.measure(model).save(tmp_path / "saved")
    assert file.read_bytes() == (tmp_path / "saved").read_bytes()
    again = Scores.load(file)
    assert (again.wanted is None) == ("objective" not in options)
    assert len(pruner.choose_from(again).pruned) == 24


def test_a_state_finds_them_again(tmp_path):
    redraws, model, pruner = drawn(tmp_path)
    resumed = Redraws(pruner, tmp_path)
    resumed.load_state_dict(redraws.state_dict())
    known = redraws.draw(model, torch.arange(60), measure=False)
    found = resumed.draw(model, torch.arange(60), measure=False)
    assert known.pruned.equal(found.pruned)


@pytest.mark.parametrize("content", ["bare", "none"])
def test_files_of_older_releases_are_refused(tmp_path, content, monkeypatch):
    redraws, model, pruner = drawn(tmp_path)
    held = {"bare": pruner.measure(model).state_dict(), "none": {"scores": 3}}[content]
    monkeypatch.setattr(Scores, "to_bytes", lambda self: pack_state(held))
    older, _, _ = drawn(tmp_path)
    before = redraws.state_dict()
    with pytest.raises(ValueError, match=r"is not what Scores.save writes.*measure again"):
        redraws.load_state_dict(older.state_dict())
    assert redraws.state_dict()["file"] == before["file"]

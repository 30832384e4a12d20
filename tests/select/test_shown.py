"""What a notebook shows of selections, frontiers, audits and trajectories."""

import sys

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import Budget, Frontier, InfluencePruner, Selection, Trajectory


@pytest.fixture(scope="module")
def shown():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(300, 16), torch.arange(300) % 3)
    pruner = InfluencePruner(data, budget=Budget(fraction=0.3), progress=False)
    model = nn.Sequential(nn.Linear(16, 3))
    frontier = pruner.frontier(model, (0.2, 0.4))
    return {
        "selection": frontier.selections[0], "frontier": frontier, "audit": pruner.measure(model).audit(),
        "trajectory": Trajectory(torch.rand(3, 60)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["selection", "frontier", "audit", "trajectory"])
def test_each_shows_itself_and_draws(shown, name, tmp_path):
    what = shown[name]
    html = what._repr_html_()
    assert html.count("<table") == html.count("</table>") == (name != "trajectory")
    figure = Figure()
    given = figure.add_subplot()
    assert what.plot(given) is given
    assert given.get_xlabel()
    own = what.plot()
    assert own is not given
    own.figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_they_show_is_what_they_say(shown):
    assert "240 of 300 (80%)" in shown["selection"]._repr_html_()
    assert shown["selection"].verdict.split("'")[0] in shown["selection"]._repr_html_()
    assert "20.0%" in shown["frontier"]._repr_html_()
    assert "suspect labels" in shown["audit"]._repr_html_()
    bars = shown["audit"].plot()
    assert [t.get_text() for t in bars.get_yticklabels()] == [
        "off-target",
        "suspect labels",
        "near copies",
    ]
    assert "3 epochs of 60 samples" in shown["trajectory"]._repr_html_()


def test_text_from_outside_is_escaped():
    facts = {"layer": "<script>alert(1)</script>", "random_shift": 2.0, "parameters": 3}
    found = Selection(torch.tensor([1]), 5, 0.1, 0.2, None, Budget(count=1), facts)
    assert "<script" not in found._repr_html_()
    assert "&lt;script&gt;" in found._repr_html_()


def test_without_matplotlib_a_plot_says_how_to_install_it(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for what in shown.values():
        with pytest.raises(
            ImportError, match=r"plots need matplotlib: pip install .prunesampler.plots"
        ):
            what.plot()
    assert isinstance(shown["frontier"], Frontier)

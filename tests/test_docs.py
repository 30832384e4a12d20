"""Every Python block of the documentation runs, with what a reader would have at hand."""

import ast
import os
import re
import subprocess
import sys
from copy import deepcopy

import nbformat
import pytest
import torch
from conftest import ROOT
from nbclient import NotebookClient
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import prunesampler
from prunesampler import costs

PAGES = sorted(
    path.relative_to(ROOT / "docs").as_posix()
    for path in (ROOT / "docs").rglob("*.md") if "```python" in path.read_text()
)  # fmt: skip


def trained(data, indices=None):
    """A layer that was trained on some samples."""
    x, y = (t if indices is None else t[indices] for t in data.tensors)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def at_hand():
    """A dataset, a loader, a model, a sampler, a pruner and the public names."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 3
    x = torch.randn(400, 16, generator=draw) + 2 * nn.functional.one_hot(y, 16)
    data = TensorDataset(x, y)
    sampler = prunesampler.InfluencePrunedSampler(data)
    budget = prunesampler.Budget(fraction=0.4)
    model = trained(data)
    pruner, plain = (
        prunesampler.InfluencePruner(data, budget=budget, progress=False) for _ in range(2)
    )
    names = {name: getattr(prunesampler, name) for name in prunesampler.__all__}
    return names | dict(
        torch=torch, costs=costs, 
        DataLoader=DataLoader, StatefulDataLoader=StatefulDataLoader, x=x, y=y, train_set=data, pool=data,
        wanted=Subset(data, range(60)), mappings=[{"image": x[i], "class": y[i]} for i in range(400)],
        model=model, sampler=sampler, loader=DataLoader(data, 16, sampler=sampler), trained=trained,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        pruner=pruner, plain=plain,
        pruning=prunesampler.PruningCallback(sampler, pruner, warmup_epochs=5),
        print=lambda *values: [str(value) for value in values],
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser()]).parse(ROOT / "docs" / page)
    document.namespace.update(at_hand())
    examples = list(document.examples())
    assert len(examples) == (ROOT / "docs" / page).read_text().count("```python")
    for example in examples:
        example.evaluate()


@pytest.mark.slow
def test_the_notebook_runs_and_comes_to_what_it_shows(tmp_path):
    kept = nbformat.read(ROOT / "examples" / "head_on_features.ipynb", as_version=4)
    nbformat.validate(kept)
    again = deepcopy(kept)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(again, timeout=280, kernel_name="python3", resources=place).execute()
    (losses,) = (
        ast.literal_eval(output["data"]["text/plain"])
        for cell in again.cells if cell.cell_type == "code"
        for output in cell.outputs if output.get("data", {}).get("text/plain", "").startswith("{'all'")
    )  # fmt: skip
    assert losses["chosen, weighted"] - losses["all"] < 0.01
    assert losses["random, mean of five"] - losses["all"] > 0.1
    texts = [str(cell.get("outputs")) for cell in kept.cells]
    assert not any("Warning" in text or "Traceback" in text for text in texts)
    assert any("<iframe" in text for text in texts)
    assert "chosen, weighted" in "".join(texts)


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name for path in tmp_path.rglob("index.html")}
    assert {"first-run", "pools", "glossary", "tried"} <= pages
    text = "".join(path.read_text() for path in tmp_path.rglob("*.html"))
    assert not re.search(
        r'<(?:script|img|link)[^>]+(?:src|href)="https?://(?!arxiv)[^"]+\.(?:js|css|png|woff2?)',
        text,
    )

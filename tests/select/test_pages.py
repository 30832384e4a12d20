"""Reports of selections and audits: what is said is true, whatever the dataset holds."""

import dataclasses
import math
import random
import re
import time

import numpy as np
import pytest
import torch
from hostile import OwnRandom
from html_checks import checked

from prunesampler import (
    Budget,
    ExactCurvature,
    Frontier,
    InfluencePruner,
    Selection,
    SquaredError,
    Target,
)
from prunesampler.select.findings import Finding
from prunesampler.select.measured import influence_norms
from prunesampler.select.samples import Names, read_samples, spread
from prunesampler.select.sections import headroom_section


class Pool:
    """Images of some classes; the first labels are wrong, and the last samples are copies."""

    def __init__(self, n=240, classes=4, seed=0, wrong=20, copied=20):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % classes
        centres = 2 * torch.randn(classes, 1, 6, 6, generator=torch.Generator().manual_seed(9))
        self.x = centres[self.labels] + 0.5 * torch.randn(n, 1, 6, 6, generator=generator)
        self.labels[:wrong] = (self.labels[:wrong] + 1) % classes
        if copied:
            self.x[n - copied :] = self.x[100 : 100 + copied] + 1e-3
            self.labels[n - copied :] = self.labels[100 : 100 + copied]
        self.classes = [f"kind {k}" for k in range(classes)]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], int(self.labels[index])


def scores_of(data, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, int(data.labels.max()) + 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.x), data.labels).backward()
        optimizer.step()
    options = {"budget": Budget(fraction=0.6), "curvature": ExactCurvature(damping=0.01), **options}
    pruner = InfluencePruner(data, progress=False, **options)
    scores = pruner.measure(model)
    return pruner.choose_from(scores), scores


@pytest.fixture(scope="module")
def made():
    pool = Pool()
    selection, scores = scores_of(pool, objective=Target(Pool(60, seed=1, wrong=0, copied=0)))
    odd = Finding(torch.tensor([5, 3, 8]), torch.tensor([0.9, 0.8, 0.7]), "three are odd")
    return pool, selection, scores, dataclasses.replace(scores.audit(), off_target=odd)


def plain(selection=None, **changes):
    values = {"shift": 0.5, "newton_shift": 0.6, "bound": None, "budget": Budget(count=2)}
    return Selection(torch.tensor([1, 4]), 6, **{**values, **changes})


def reported(found, path, *arguments):
    found.report(path, *arguments)
    html = path.read_text(encoding="utf-8")
    return html, checked(html)


def words(seen):
    return " ".join(seen.text.replace("\N{NO-BREAK SPACE}", " ").split())


def test_a_selection_says_what_it_decided_and_costs(made, tmp_path):
    pool, selection, scores, _ = made
    _, seen = reported(selection, tmp_path / "page.html", pool, scores)
    said = words(seen)
    assert "40 % of 240 samples stay" in said
    assert selection.verdict in said
    assert all(line.partition(": ")[2] in said for line in selection.certificate.splitlines())
    assert f"{selection.newton_shift:.3g}" in said
    assert "Headroom" in said
    assert "The 4 classes keep from" in said
    assert "fraction=0.6" in said
    assert len(seen.of("svg")) == 2 + 1 + 1 + 2
    assert len(seen.of("img")) == 48
    assert "are shown with" not in said


def test_kept_shares_are_those_of_the_classes(made, tmp_path):
    pool, selection, scores, _ = made
    html, _ = reported(selection, tmp_path / "page.html", pool, scores)
    for k in range(4):
        members = scores.labels == k
        share = float(members[selection.kept].sum() / members.sum())
        assert re.search(
            rf"kind {k}</text><text[^>]*>{share * 100:.0f}.% of {int(members.sum())}<", html
        )


def test_galleries_show_pruned_as_pruned_and_kept_as_kept(made, tmp_path):
    pool, selection, scores, _ = made
    _, seen = reported(selection, tmp_path / "page.html", pool, scores)
    pruned = set(selection.pruned.tolist())
    for image in seen.of("img"):
        index, label, group = re.fullmatch(r"Sample (\d+), class kind (\d), (\w+)", image["alt"]).groups()  # fmt: skip
        assert (int(index) in pruned) is (group == "pruned")
        assert int(label) == pool.labels[int(index)]


def test_an_audit_shows_what_it_found(made, tmp_path):
    pool, _, _, audit = made
    html, seen = reported(audit, tmp_path / "page.html", pool)
    said = words(seen)
    assert f"Of 240 samples, {len(audit.copies)} are near copies" in said
    assert len(audit.copies) == 20
    for finding in (audit.copies, audit.suspects, audit.off_target):
        assert len(finding)
        assert finding.advice in said
    pairs = re.findall(r"Sample (\d+), class kind \d, stays.*?Sample (\d+), class", html, re.DOTALL)
    assert len(pairs) == 12
    for stays, goes in pairs:
        place = audit.copies.indices.tolist().index(int(goes))
        assert audit.copies.originals[place] == int(stays)
        assert int(goes) - int(stays) == 120 or int(stays) - int(goes) == 120
    shown = re.findall(r"Sample (\d+), label kind (\d), believed kind (\d)", html)
    assert len(shown) == min(len(audit.suspects), 24)
    for index, label, believed in shown:
        assert pool.labels[int(index)] == int(label) != int(believed)
        if int(index) < 20:
            assert int(believed) == int(index) % 4


def test_findings_know_the_original_and_the_class_believed(made):
    _, _, scores, audit = made
    assert torch.equal(audit.labels, scores.measurements.labels)
    assert (audit.groups[audit.copies.originals] == audit.groups[audit.copies.indices]).all()
    assert not torch.isin(audit.copies.originals, audit.copies.indices).any()
    p = scores.leave_one_out()[audit.suspects.indices]
    assert torch.equal(audit.suspects.believed, p.argmax(1))
    assert (audit.suspects.believed != audit.labels[audit.suspects.indices]).all()
    assert audit.copies.believed is audit.suspects.originals is None


def test_reports_without_data_say_what_is_missing(made, tmp_path):
    _, selection, scores, audit = made
    said = words(reported(selection, tmp_path / "page.html")[1])
    assert (
        "classes and distributions are shown with scores= and samples are shown with dataset="
        in said
    )
    _, seen = reported(audit, tmp_path / "page.html")
    assert not seen.of("img")
    assert "Samples are shown with dataset=." in words(seen)
    assert words(reported(selection, tmp_path / "page.html", None, scores)[1]).count("Influence")


@pytest.mark.filterwarnings("ignore:the .* pruned samples are no better")
def test_a_frontier_is_drawn_with_the_chosen_point(made, tmp_path):
    pool, selection, scores, _ = made
    found = [
        InfluencePruner(pool, budget=Budget(fraction=share), progress=False).choose_from(scores)
        for share in (0.2, 0.4, 0.8)
    ]
    path = tmp_path / "page.html"
    selection.report(path, frontier=Frontier(tuple(found)))
    html = path.read_text(encoding="utf-8")
    (drawing,) = (svg for svg in re.findall("<svg.*?</svg>", html) if "chosen sets" in svg)
    # Four points, of which this selection is one, for the sets and as many for random ones.
    assert drawing.count('class="kept curve"') == drawing.count('class="other curve"') == 3
    assert drawing.count('class="pointer"') == 1
    assert "60 % pruned" in words(checked(html))
    with pytest.raises(
        ValueError, match="the frontier is of 6 samples and the selection is of 240"
    ):
        selection.report(tmp_path / "other.html", frontier=[plain()])
    assert not (tmp_path / "other.html").exists()


def test_a_frontier_without_shifts_is_left_out(tmp_path):
    unknown = plain(shift=math.nan, newton_shift=math.nan)
    unknown.report(tmp_path / "page.html", frontier=[unknown])
    assert "Frontier" not in checked((tmp_path / "page.html").read_text()).text


def test_other_lengths_are_refused_before_anything_is_written(made, tmp_path):
    pool, selection, _, audit = made
    other = scores_of(Pool(100, copied=0), budget=Budget(count=10))[1]
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(ValueError, match="the dataset has 3 samples and the selection is of 240"):
        selection.report(path, [1, 2, 3])
    with pytest.raises(ValueError, match="the dataset has 3 samples and the audit is of 240"):
        audit.report(path, [1, 2, 3])
    with pytest.raises(ValueError, match="the scores are of 100 samples, this dataset has 240"):
        selection.report(path, pool, other)
    with pytest.raises(ValueError, match=r"the dataset \(object\) has no length"):
        audit.report(path, object())
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"random_shift": None, "headroom": None, "layer": None, "damping": None},
        {"random_shift": 0.0, "random_newton_shift": math.inf, "headroom": 7, "parameters": 0},
        {"headroom": math.nan, "mean_loss": math.nan, "measuring_seconds": math.inf},
        {"layer": "<script>alert(1)</script>", "<b>": ["<i>"] * 1000, "by": "\x00\ud800"},
    ],
)
@pytest.mark.parametrize(
    "changes", [{}, {"shift": math.nan, "newton_shift": math.nan, "bound": 1.0}]
)
def test_any_selection_can_be_reported(facts, changes, tmp_path):
    selection = plain(metadata=facts, **changes)
    seen = checked_page(selection, tmp_path)
    assert "4" in seen.text
    nothing = dataclasses.replace(selection, pruned=torch.empty(0, dtype=torch.int64))
    assert "Nothing was pruned" in checked_page(nothing, tmp_path).text


def checked_page(found, tmp_path):
    return reported(found, tmp_path / "page.html", list(range(6)))[1]


class Awkward(Pool):
    """Cannot be read here and there, and what can be is odd."""

    @property
    def classes(self):
        return ["<script>alert(1)</script>", "مرحبا بالعالم", "x" * 3000]

    @classes.setter
    def classes(self, names):
        pass

    def __getitem__(self, index):
        if index % 5 == 0:
            raise RuntimeError("</li></ul><script>alert(2)</script>")
        odd = [None, float("nan") * self.x[index], "\u202e" * 9999, object(), {"a": [[{}]]}]
        return odd[index % 5], "no number"


def test_odd_samples_and_names_are_shown_escaped(made, tmp_path):
    _, selection, scores, audit = made
    html, seen = reported(audit, tmp_path / "page.html", Awkward())
    assert "<script" not in html
    assert "could not be read: RuntimeError(&#39;&lt;/li&gt;" in html
    assert "no number is finite" in seen.text
    assert any(bdi.get("title") == "x" * 3000 for bdi in seen.of("bdi"))
    _, seen = reported(selection, tmp_path / "page.html", Awkward(), scores)
    assert "مرحبا بالعالم" in seen.text


def test_ten_thousand_classes_show_the_extremes(made, tmp_path):
    _, _, scores, audit = made
    labels = torch.arange(30_000) % 10_000
    pruned = torch.cat([torch.arange(5), torch.arange(10_000, 15_000)])
    pruned = torch.cat([pruned, 20_000 + torch.arange(5)])
    measured = dataclasses.replace(
        scores, measurements=scores.measurements[torch.arange(30_000) % 240], labels=labels
    )
    selection = Selection(pruned, 30_000, 0.1, 0.1, None, Budget(count=len(pruned)))
    path = tmp_path / "page.html"
    influence = scores.influence
    gradients = influence.gradients[torch.arange(30_000) % 240]
    measured = dataclasses.replace(
        measured, influence=dataclasses.replace(influence, gradients=gradients)
    )
    _, seen = reported(selection, path, None, measured)
    assert "9,976 of 10,000 classes lie between and are not shown." in seen.text
    assert "5 of them keep none" in seen.text
    assert path.stat().st_size < 100_000
    many = dataclasses.replace(audit, counts=torch.arange(10_001))
    _, seen = reported(many, path)
    assert "9,976 of 10,000 classes lie between" in seen.text


def test_reading_leaves_the_dataset_and_random_numbers_alone(made, tmp_path):
    _, _, _, audit = made
    data = OwnRandom(240)
    states = [data.rng.bit_generator.state, data.transform.generator.get_state()]
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(2).tolist(), random.random()
    torch.manual_seed(3)
    random.seed(3)

    class Drawing(OwnRandom):
        def __getitem__(self, index):
            self.drawn = torch.rand(1), random.random(), np.random.rand()
            return super().__getitem__(index)

    audit.report(tmp_path / "page.html", data)
    audit.report(tmp_path / "page.html", Drawing(240))
    assert (torch.rand(2).tolist(), random.random()) == expected
    assert data.rng.bit_generator.state == states[0]
    assert torch.equal(data.transform.generator.get_state(), states[1])


def test_only_a_few_samples_are_read(made, tmp_path):
    _, selection, scores, audit = made

    class Counting(Pool):
        reads = 0

        def __getitem__(self, index):
            type(self).reads += 1
            return super().__getitem__(index)

    selection.report(tmp_path / "page.html", Counting(), scores)
    assert Counting.reads == 48
    audit.report(tmp_path / "page.html", Counting())
    assert Counting.reads <= 48 + 72


def test_losses_without_classes_are_reported(tmp_path):
    data = [(torch.randn(4), torch.randn(2)) for _ in range(40)]
    pruner = InfluencePruner(
        data, budget=Budget(count=9), losses=SquaredError(), progress=False,
        curvature=ExactCurvature(damping=0.1),
    )  # fmt: skip
    scores = pruner.measure(torch.nn.Linear(4, 2))
    said = words(reported(scores.audit(), tmp_path / "page.html", data)[1])
    assert "not looked for" in said
    said = words(reported(pruner.choose_from(scores), tmp_path / "page.html", data, scores)[1])
    assert "Kept share per class" not in said
    assert "Errors and influence" in said


def test_some_samples_stand_for_all_where_norms_take_long(made):
    influence = made[2].influence
    everyone, norms = influence_norms(influence)
    assert len(everyone) == 240
    assert torch.allclose(norms, influence.sample_squares().sqrt() / 240)
    some, few = influence_norms(influence, most=50)
    assert some.tolist() == list(range(0, 240, 5))
    assert torch.allclose(few, norms[::5])
    assert len(influence_norms(influence, work=1e6)[0]) <= 50


@pytest.mark.slow
def test_a_report_of_fifty_thousand_is_quick_and_small(tmp_path):
    data = Pool(50_000, classes=10, wrong=0, copied=0)
    data.x = data.x.repeat(1, 3, 8, 8)
    measured = Pool(50_000, classes=10, wrong=0, copied=0)
    selection, scores = scores_of(measured, budget=Budget(fraction=0.4), batch_size=4096)
    started = time.perf_counter()
    selection.report(tmp_path / "page.html", data, scores)
    assert time.perf_counter() - started < 10
    assert (tmp_path / "page.html").stat().st_size < 5e6


def test_the_advice_is_that_of_the_headroom():
    assert "fewer epochs on all" in headroom_section(0.7).sentences[0]
    assert "can pay" in headroom_section(0.95).sentences[0]
    assert "unknown" in headroom_section(math.nan).sentences[0]


def test_names_and_labels_are_taken_where_they_are():
    assert Names.in_dataset(object()).of(3) == "3"
    assert Names(("a",)).of(-1) == "-1"
    items = [
        (0, 1), {"label": torch.tensor(2)}, (0, torch.tensor([1, 2])), (0, "cat"), (0, True), 5,
        (0, np.int64(4)),
    ]  # fmt: skip
    found = read_samples(items, range(len(items)))
    assert [found[k].label for k in range(len(items))] == [1, 2, None, None, None, None, 4]


def test_samples_are_spread_evenly():
    assert spread(torch.arange(5), 10) == [0, 1, 2, 3, 4]
    assert spread(torch.arange(1000), 5) == [0, 249, 499, 749, 999]
    assert spread(torch.empty(0, dtype=torch.int64), 5) == []

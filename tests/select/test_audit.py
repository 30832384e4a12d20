"""An audit finds what was put into a pool, and says what does not apply; nothing is changed by looking."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    Audit,
    BinaryCrossEntropy,
    Budget,
    CrossEntropy,
    ExactCurvature,
    IdentityCurvature,
    InfluencePrunedSampler,
    InfluencePruner,
    PruningCallback,
    Scores,
    SquaredError,
    Target,
    TokenCrossEntropy,
    cross_split,
    suspects_from,
)

CENTRES = 3 * torch.randn(8, 24, generator=torch.Generator().manual_seed(3))


def places(n, seed, off=0, wrong=0, copied=0):
    """Samples of four classes; the last are copies, before them such of other places, the first wrong."""
    torch.manual_seed(seed)
    labels = torch.arange(n) % 4
    place = labels.clone()
    place[n - off :] = torch.randint(4, 8, (off,))
    x = CENTRES[place] + torch.randn(n, 24)
    labels[:wrong] = (labels[:wrong] + 1 + torch.randint(0, 3, (wrong,))) % 4
    if copied:
        x = torch.cat([x, x[n // 2 : n // 2 + copied] + 0.01 * torch.randn(copied, 24)])
        labels = torch.cat([labels, labels[n // 2 : n // 2 + copied]])
    return TensorDataset(x, labels)


def fitted(data):
    """A layer at the minimum of its loss."""
    x, y = data.tensors
    model = nn.Sequential(nn.Linear(24, 4))
    search = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        penalty = sum(p.square().sum() for p in model.parameters())
        value = nn.functional.cross_entropy(model(x), y) + 0.005 * penalty
        value.backward()
        return value

    search.step(loss)
    return model


def pruner(data, **options):
    options = {"budget": Budget(fraction=0.3), "curvature": ExactCurvature(damping=0.01), **options}
    return InfluencePruner(data, progress=False, **options)


def test_what_was_put_in_is_found():
    data = places(800, 0, off=200, wrong=60, copied=50)
    scores = pruner(data, objective=Target(places(120, 9))).measure(fitted(data))
    audit = scores.audit()
    assert isinstance(audit, Audit)
    assert {i if i < 450 else i - 400 for i in audit.copies.indices.tolist()} == {*range(400, 450)}
    assert len(audit.copies) == 50
    assert int((audit.groups >= 0).sum()) == 100
    wrong, off = audit.suspects.indices < 60, audit.suspects.indices >= 600
    assert float((wrong | off).double().mean()) > 0.95
    assert int(wrong.sum()) > 50
    found = set(audit.off_target.indices.tolist())
    put_in = set(range(600, 800)) | set(range(60))
    assert len(found & put_in) > 0.85 * len(put_in)
    assert len(found - put_in) < 0.15 * len(put_in)
    told = re.search(r"by features that tell the class of (\d+)% of these", audit.off_target.advice)
    x, y = places(120, 9).tensors
    left_out = cross_val_score(LogisticRegression(), x, y, cv=10).mean()
    assert int(told[1]) == pytest.approx(100 * left_out, abs=3)
    assert audit.counts.tolist() == torch.bincount(data.tensors[1]).tolist()
    assert 0.5 <= audit.headroom <= 1
    assert 0 < audit.directions <= 75
    text = str(audit)
    assert all(
        word in text
        for word in ("near copies", "suspect labels", "off-target", "headroom", "classes")
    )
    for finding in (audit.copies, audit.suspects, audit.off_target):
        assert len(finding.indices) == len(finding.confidence)
        assert finding.confidence.tolist() == sorted(finding.confidence.tolist(), reverse=True)
        assert (
            not len(finding)
            or 0 <= float(finding.confidence.min()) <= float(finding.confidence.max()) <= 1
        )


def test_a_clean_pool_has_nothing_to_drop():
    data = places(800, 1)
    audit = pruner(data, objective=Target(places(120, 9))).measure(fitted(data)).audit()
    assert len(audit.copies) == len(audit.off_target) == 0
    assert len(audit.suspects) <= 4
    assert "none" in audit.copies.advice


def test_what_is_dropped_goes():
    data = places(600, 0, wrong=60, copied=40)
    held = pruner(data)
    scores = held.measure(fitted(data))
    audit = scores.audit()
    chosen = pruner(data, constraints=audit.drop("copies", "suspects")).choose_from(scores)
    gone = set(audit.copies.indices.tolist()) | set(audit.suspects.indices.tolist())
    assert gone <= set(chosen.pruned.tolist())
    assert len(chosen.pruned) == round(0.3 * 640)
    assert set(audit.kept("copies", "suspects").tolist()) == set(range(640)) - gone
    for names in ((), ("copy",), ("copies", "spam"), (["copies"],)):
        with pytest.raises(ValueError, match=r"drop takes some of copies, suspects, off_target"):
            audit.drop(*names)


def test_looking_changes_nothing():
    data = places(200, 0)
    model, sampler = fitted(data), InfluencePrunedSampler(data)
    before = copy.deepcopy(model.state_dict())
    scores = pruner(data).measure(model)
    again = scores.measurements.delta.clone()
    scores.audit()
    assert len(sampler.kept) == 200
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(scores.measurements.delta, again)


def test_wanted_scores_by_the_same_model():
    data, sure = places(400, 0, off=150), places(120, 9)
    model = fitted(data)
    given = pruner(data).measure(model).audit(wanted=pruner(sure).measure(model))
    held = pruner(data, objective=Target(sure)).measure(model).audit()
    assert torch.equal(given.off_target.indices, held.off_target.indices)
    with pytest.raises(ValueError, match="measured at a layer of"):
        other = nn.Sequential(nn.Linear(24, 5))
        pruner(data).measure(model).audit(wanted=pruner(sure).measure(other))


def test_a_regression_says_what_it_can():
    torch.manual_seed(0)
    x = torch.randn(100, 16)
    data = TensorDataset(torch.cat([x, x[:3]]), torch.randn(103, 1))
    scores = pruner(
        data, losses=SquaredError(), budget=Budget(fraction=0.3, min_per_class=0)
    ).measure(nn.Sequential(nn.Linear(16, 1)))
    audit = scores.audit()
    assert len(audit.copies) == 3
    assert "not applicable: the loss has no classes" in audit.suspects.advice
    assert "unknown" in audit.remarks["classes"]
    assert "not applicable: the loss has no" in scores.audit(wanted=scores).off_target.advice
    with pytest.raises(ValueError, match="no classes"):
        scores.leave_one_out()


def test_a_layer_that_knows_nothing_doubts_no_label():
    """Fewer samples than features, and random weights: without its sample, every label is a guess."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(60, 100), torch.arange(60) % 5)
    audit = pruner(data).measure(nn.Sequential(nn.Linear(100, 5))).audit()
    assert len(audit.suspects) == 0
    assert (
        "not applicable: without the sample the layer names the label of" in audit.suspects.advice
    )
    assert "knows too little to doubt any" in audit.suspects.advice


def test_features_that_tell_little_are_named():
    blind = TensorDataset(torch.randn(300, 24), torch.arange(300) % 4)
    sure = TensorDataset(torch.randn(80, 24), torch.arange(80) % 3)  # so labels of 3 are off-target
    made = pruner(blind, objective=Target(sure))
    scores = made.measure(fitted(blind))
    with pytest.warns(
        UserWarning, match=r"features that tell the class of only \d+% of the wanted"
    ):
        made.choose_from(scores)
    off = scores.audit().off_target
    assert len(off) >= 75
    assert "too few to drop any by" in off.advice


def test_most_labels_may_be_wrong():
    """A layer that knows some of the right labels doubts the others, however many they are."""
    data = places(1200, 0, wrong=720)
    audit = pruner(data).measure(fitted(places(1200, 0))).audit()
    assert len(audit.suspects) > 600
    assert float((audit.suspects.indices < 720).double().mean()) > 0.95


def test_features_that_are_all_the_same_are_named():
    x = torch.ones(40, 12)
    data = TensorDataset(x, torch.arange(40) % 2)
    audit = pruner(data).measure(nn.Sequential(nn.Linear(12, 2))).audit()
    assert "not applicable: all 40 samples have the same features" in audit.copies.advice
    for similar in (7, "near", 0.0):
        with pytest.raises(ValueError, match="is a cosine"):
            pruner(places(60, 0)).measure(nn.Sequential(nn.Linear(24, 4))).audit(similar=similar)


def test_too_few_features_tell_no_copies():
    data = TensorDataset(torch.randn(60, 2), torch.arange(60) % 3)
    scores = pruner(data).measure(nn.Sequential(nn.Linear(2, 3)))
    assert "to tell copies" in scores.audit().copies.advice
    assert len(scores.audit(similar=1.0).copies) == 0


def test_wanted_samples_of_one_class_are_a_line_in_the_audit():
    data, sure = places(200, 0), places(80, 9)
    x, y = sure.tensors
    scores = pruner(data).measure(model := fitted(data))
    one = pruner(TensorDataset(x[y == 1], y[y == 1]), gradients=None, labels=torch.arange(20) % 2)
    audit = scores.audit(wanted=one.measure(model))
    assert "not applicable: all 20 wanted samples have label 1" in audit.off_target.advice
    assert len(audit.groups) == 200


class Counted(TensorDataset):
    """Counts how often an item is read."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("targets", "losses"),
    [
        (torch.rand(900, 4).softmax(1), CrossEntropy()),
        (torch.rand(900, 4).round(), BinaryCrossEntropy()),
    ],
)
def test_a_target_without_classes_is_refused_on_the_first_batch(targets, losses):
    data = Counted(torch.randn(900, 24), targets)
    held = pruner(data, losses=losses, objective=Target(data), batch_size=50)
    model = nn.Sequential(nn.Linear(24, 4))
    for call in (held.check, held.select):
        with pytest.raises(ValueError, match=r"class of each sample is not known|no classes"):
            call(model)
    assert data.read < 300


def test_unequal_classes_are_named():
    labels = torch.cat([torch.zeros(300), torch.ones(20), torch.full((10,), 2)]).long()
    data = TensorDataset(torch.randn(330, 12), labels)
    audit = pruner(data).measure(nn.Sequential(nn.Linear(12, 3))).audit()
    assert "from 10 to 300 samples" in audit.remarks["classes"]
    assert 'Budget(per_class="equal")' in audit.remarks["classes"]


def test_sequences_are_audited_as_far_as_they_go():
    data = TensorDataset(torch.randn(40, 5, 8), torch.randint(0, 3, (40, 5)))
    scores = pruner(data, losses=TokenCrossEntropy()).measure(nn.Sequential(nn.Linear(8, 3)))
    audit = scores.audit()
    assert "not applicable" in audit.copies.advice
    assert "not applicable" in audit.suspects.advice
    assert audit.headroom > 0.5


@pytest.mark.filterwarnings("ignore:the .* pruned samples are no better")
@pytest.mark.parametrize("curvature", [ExactCurvature(damping=0.01), None, IdentityCurvature()])
def test_scores_outlive_the_process(tmp_path, curvature):
    data = places(300, 0, wrong=20)
    held = pruner(data, curvature=curvature, objective=Target(places(80, 9)))
    model = fitted(data)
    scores = held.measure(model)
    scores.save(tmp_path / "scores")
    again = Scores.load(tmp_path / "scores")
    assert len(again) == 300
    assert torch.equal(again.labels, scores.labels)
    for budget in (Budget(count=50), Budget(fraction=0.5)):
        chosen = [
            pruner(data, budget=budget, curvature=curvature).choose_from(s).pruned
            for s in (scores, again)
        ]
        assert torch.equal(*chosen)
    assert str(again.audit()) == str(scores.audit())
    assert torch.equal(held.choose_from(again).pruned, held.select(model).pruned)


def test_scores_of_another_dataset_are_refused(tmp_path):
    data = places(300, 0)
    scores = pruner(data).measure(fitted(data))
    with pytest.raises(ValueError, match="scores are of 300 samples, this dataset has 200"):
        pruner(places(200, 0)).choose_from(scores)
    x, y = data.tensors
    with pytest.raises(ValueError, match="of another dataset of 300 samples"):
        pruner(TensorDataset(x, (y + 1) % 4)).choose_from(scores)
    with pytest.raises(ValueError, match="Target needs wanted samples, and these scores hold none"):
        pruner(data, objective=Target(places(50, 9))).choose_from(scores)
    with pytest.raises(ValueError, match="no scores on rank 0"):
        pruner(data).choose_from(None)


def test_wanted_samples_of_another_objective_are_refused():
    data, sure = places(300, 0), places(50, 9)
    scores = pruner(data, objective=Target(sure)).measure(fitted(data))
    assert len(pruner(data, objective=Target(sure)).choose_from(scores).pruned) == 90
    x, y = sure.tensors
    for other in (places(40, 9), TensorDataset(x, (y + 1) % 4)):
        with pytest.raises(ValueError, match=f"50 other wanted samples than the {len(other)}"):
            pruner(data, objective=Target(other)).choose_from(scores)


def test_curvature_and_guarantee_are_those_of_the_scores():
    data, damping = places(300, 0), 0.02
    model = fitted(data)
    made = pruner(data, curvature=ExactCurvature(damping=damping))
    scores, truth = made.measure(model), made.select(model)
    found = InfluencePruner(data, budget=Budget(fraction=0.3), progress=False).choose_from(scores)
    assert torch.equal(found.pruned, truth.pruned)
    assert found.bound == truth.bound
    assert found.bound is not None
    assert found.newton_shift == pytest.approx(truth.newton_shift)
    assert found.metadata["curvature"] == "ExactCurvature"
    assert found.metadata["damping"] == damping
    plain = InfluencePruner(data, budget=Budget(fraction=0.3), progress=False).measure(model)
    assert pruner(data, curvature=None).choose_from(plain).bound is None  # no penalty was given
    for options in (
        {"curvature": ExactCurvature(damping=0.5)},
        {"curvature": None, "center": False},
    ):
        with pytest.raises(
            ValueError,
            match=r"scores were made with ExactCurvature\(damping=0.02.*give it the same",
        ):
            pruner(data, **options).choose_from(scores)


def test_a_split_judges_by_the_network_that_did_not_see(tmp_path):
    data, split = places(400, 0, wrong=80), cross_split(400, seed=4)
    assert sorted(split.first.tolist() + split.second.tolist()) == list(range(400))
    assert not torch.equal(split.first, cross_split(400, seed=5).first)
    held = pruner(data)
    halves = [
        TensorDataset(*(t[half] for t in data.tensors)) for half in (split.first, split.second)
    ]
    first, second = (held.measure(fitted(half)) for half in halves)
    found = suspects_from(first, second, split, times=1)
    x, y = data.tensors
    judged = torch.empty(400, 4)
    judged[split.second] = fitted(halves[0])(x[split.second]).detach()
    judged[split.first] = fitted(halves[1])(x[split.first]).detach()
    assert set(found.indices.tolist()) == set((judged.argmax(1) != y).nonzero()[:, 0].tolist())
    assert float((found.indices < 80).double().mean()) > 0.75
    with pytest.raises(ValueError, match="scores are of 400 samples"):
        suspects_from(first, second, cross_split(300))
    with pytest.raises(ValueError, match="1 sample cannot be split"):
        cross_split(1)
    with pytest.raises(ValueError, match=r"whole number of at least 0, got 10\.0"):
        cross_split(10.0)
    twice = replace(split, second=split.first)
    with pytest.raises(ValueError, match="share samples or leave some out"):
        suspects_from(first, second, twice)
    with pytest.raises(TypeError, match="that measure returns on rank 0, got None"):
        suspects_from(first, None, split)
    other = held.measure(nn.Sequential(nn.Linear(24, 7)))
    with pytest.raises(ValueError, match="first network tells 4 classes apart and the second 7"):
        suspects_from(first, other, split)


def test_the_callback_cleans_with_target():
    data, sure = places(400, 0, off=120), places(100, 9)
    model, sampler = fitted(data), InfluencePrunedSampler(data)
    chosen = pruner(data, objective=Target(sure), losses=CrossEntropy())
    selection = PruningCallback(sampler, chosen, warmup_epochs=1).on_epoch_end(0, model)
    assert float((selection.pruned >= 280).double().mean()) > 0.9
    assert len(sampler.kept) == 280


def test_findings_alone_go_without_a_warning_or_a_floor():
    data, sure = places(300, 0), places(100, 9)
    x, y = sure.tensors
    lacking = TensorDataset(x[y != 3], y[y != 3])
    scores = pruner(data, objective=Target(lacking)).measure(fitted(data))
    dropped = scores.audit().drop("off_target")
    assert (data.tensors[1][dropped.prune] == 3).sum() == 75
    budget = Budget(count=len(dropped.prune), min_per_class=0)
    chosen = pruner(data, constraints=dropped, budget=budget).choose_from(scores)
    assert torch.equal(chosen.pruned, dropped.prune)
    with pytest.raises(ValueError, match="prune= leaves 0 samples of class 3, but min_per_class=1"):
        pruner(data, constraints=dropped, budget=Budget(fraction=0.4)).choose_from(scores)


def test_what_is_proved_of_the_loss_is_of_the_loss_that_was_measured():
    """The constant of a loss with large class weights is not that of the pruner that chooses."""
    data = places(300, 0)
    weighted = CrossEntropy(weight=torch.full((4,), 30.0))
    made = pruner(data, losses=weighted)
    scores, truth = made.measure(model := fitted(data)), made.select(model)
    found = pruner(data, curvature=None).choose_from(scores)
    assert scores.lipschitz == weighted.lipschitz
    assert found.loss_bound == truth.loss_bound is not None
    again = made.scores_from(scores.state_dict())
    assert again.lipschitz == scores.lipschitz


def test_what_are_no_scores_is_named():
    data = places(100, 0)
    scores = pruner(data).measure(fitted(data))
    with pytest.raises(TypeError, match=r"takes scores, got str; read a file with Scores.load"):
        pruner(data).choose_from("scores.safetensors")
    with pytest.raises(TypeError, match="wanted= takes scores, as pruner.measure"):
        scores.audit(wanted=data)
    with pytest.raises(ValueError, match="scores are of 100 samples, this dataset has 60"):
        pruner(places(60, 0)).redraw(scores, torch.zeros(60, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:the .* pruned samples are no better")
def test_a_redraw_takes_the_labels_of_this_pruner():
    data, groups = places(200, 0), (torch.arange(200) < 20).long()
    scores = pruner(data).measure(fitted(data))
    mine = pruner(data, labels=groups, budget=Budget(count=160, per_class="equal"))
    drawn = mine.redraw(scores, torch.zeros(200, dtype=torch.int64))
    assert torch.bincount(groups[drawn.kept]).tolist() == [20, 20]


@pytest.mark.filterwarnings("ignore:the .* pruned samples are no better")
def test_scores_of_another_pruner_take_the_labels_of_this_one():
    data, groups = places(200, 0), (torch.arange(200) < 20).long()
    model = fitted(data)
    plain = pruner(data).measure(model)
    mine = pruner(data, labels=groups, budget=Budget(count=160, per_class="equal"))
    assert torch.bincount(groups[mine.choose_from(plain).kept]).tolist() == [20, 20]
    state = {**plain.state_dict(), "inputs": plain.measurements.inputs.long()}
    with pytest.raises(ValueError, match=r"inputs are torch.int64 of shape \(200, 25\)"):
        mine.scores_from(state)


def test_a_state_without_wanted_samples_is_no_target_s():
    data, sure = places(200, 0), places(60, 9)
    sampler = InfluencePrunedSampler(data)
    kept = PruningCallback(sampler, pruner(data), warmup_epochs=1, redraw_every=1)
    kept.on_epoch_end(0, fitted(data))
    other = PruningCallback(
        InfluencePrunedSampler(data),
        pruner(data, objective=Target(sure)),
        warmup_epochs=1,
        redraw_every=1,
    )
    with pytest.raises(ValueError, match="Target needs wanted samples, and these scores hold none"):
        other.load_state_dict(kept.state_dict())

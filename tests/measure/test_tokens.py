"""Sequences with a loss for each token, against autograd, and from end to end."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from prunesampler import (
    Budget,
    HeadGradients,
    IdentityCurvature,
    InfluencePruner,
    KroneckerCurvature,
    TokenCrossEntropy,
    costs,
)
from prunesampler.influence.sequences import Sequences
from prunesampler.measure import tokens as module

WORDS, TAGS, WIDTH, LENGTH = 11, 4, 5, 7


class Tagger(nn.Module):
    """Gives every word of a text a tag, or, with as many tags as words, the next word."""

    def __init__(self, tags=TAGS, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.mix = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, tags, bias=bias)

    def forward(self, input_ids):
        return self.head(self.mix(self.embedding(input_ids))[0])


def texts(n=6, tags=TAGS, length=LENGTH, ragged=True):
    """Texts, and tags of which some are ignored; the third text has none at all."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(0, WORDS, (n, length), generator=draw)
    targets = torch.randint(0, tags, (n, length), generator=draw)
    if ragged:
        targets[torch.rand(n, length, generator=draw) < 0.3] = -100
        targets[2] = -100
    return words, targets


def gradients(model, batch, losses):
    """Gradient of every sample's loss with respect to the head, by autograd, (n, C, D)."""
    found = []
    for i in range(len(batch[0])):
        value = losses(model, tuple(part[i : i + 1] for part in batch)).sum()
        parts = torch.autograd.grad(value, list(model.head.parameters()))
        found.append(torch.cat([p.reshape(len(parts[0]), -1) for p in parts], 1))
    return torch.stack(found)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [False, True])
def test_gradients_are_those_of_autograd(bias, shift):
    model, batch, losses = Tagger(bias=bias), texts(), TokenCrossEntropy(shift=shift)
    measured = HeadGradients("head", losses)(model, batch)
    assert isinstance(measured, Sequences)
    expected = gradients(model, batch, losses)
    found = measured.hessian.expand(torch.cat(list(measured.rows().dense_chunks()))).float()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(measured.losses.float(), losses(model, batch).detach())
    targets = batch[1][:, 1:] if shift else batch[1]
    assert measured.counts.tolist() == (targets != -100).sum(1).tolist()
    assert measured.counts[2] == 0


def test_the_loss_is_that_of_torch():
    model, (words, targets) = Tagger(), texts()
    values = TokenCrossEntropy()(model, (words, targets))
    whole = F.cross_entropy(model(words).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(values.sum() / (targets != -100).sum(), whole)


def test_tokens_may_be_measured_a_few_at_a_time(monkeypatch):
    model, batch, source = Tagger(), texts(), HeadGradients("head", TokenCrossEntropy())
    whole = source(model, batch)
    monkeypatch.setattr(module, "AT_ONCE", 3 * TAGS)
    kept = []
    parts = HeadGradients("head", TokenCrossEntropy(), lambda m: kept.append(len(m)) or m)(
        model, batch
    )
    assert max(kept) == 3
    torch.testing.assert_close(parts.tokens.delta, whole.tokens.delta)
    torch.testing.assert_close(parts.tokens.inputs, whole.tokens.inputs)


class Ragged(Dataset):
    """Texts of their own lengths, padded by `padded` to the longest of a batch."""

    def __init__(self, n=60):
        draw = torch.Generator().manual_seed(2)
        self.words = [
            torch.randint(0, WORDS, (int(length),), generator=draw)
            for length in torch.randint(2, 12, (n,), generator=draw)
        ]

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        return self.words[index]


def padded(words):
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(words, batch_first=True),
        "labels": pad([w % TAGS for w in words], batch_first=True, padding_value=-100),
    }


def pruner(data=None, **options):
    settings = {"losses": TokenCrossEntropy(), "collate_fn": padded, "batch_size": 8}
    settings |= {"progress": False, "budget": Budget(fraction=0.4)}
    return InfluencePruner(Ragged() if data is None else data, **(settings | options))


def test_texts_of_any_length_from_end_to_end():
    selection = pruner().select(Tagger())
    assert len(selection.pruned) == 24
    assert selection.metadata["curvature"] == "ExactCurvature"
    assert selection.ratio < 0.5
    words = Ragged().words
    model, total = Tagger().requires_grad_(False), 0.0
    for text in words:
        total += float(F.cross_entropy(model(text[None])[0], text % TAGS, reduction="sum"))
    mean = total / sum(map(len, words))
    assert selection.metadata["mean_loss"] == pytest.approx(mean, rel=1e-4)


def test_the_batch_size_does_not_matter():
    found = [pruner(batch_size=size).measure(Tagger()) for size in (60, 7)]
    first, second = (scores.measurements for scores in found)
    assert first.counts.tolist() == second.counts.tolist() == [len(w) for w in Ragged().words]
    assert first.scale == second.scale == 60 / first.counts.sum()
    torch.testing.assert_close(first.tokens.delta, second.tokens.delta, atol=1e-5, rtol=1e-4)


def test_scores_come_back_from_a_state():
    made = pruner()
    scores = made.measure(Tagger())
    again = made.scores_from(scores.state_dict())
    torch.testing.assert_close(again.measurements.losses, scores.measurements.losses)
    pruned = torch.arange(20)
    assert again.influence.shift_norm(pruned) == scores.influence.shift_norm(pruned)
    state = scores.state_dict()
    for wrong in (state["counts"][:-1], state["counts"].double(), -state["counts"]):
        with pytest.raises(ValueError, match="not of the 60 sequences"):
            made.scores_from({**state, "counts": wrong})
    with pytest.raises(ValueError, match="not of the"):
        made.scores_from({**state, "counts": state["counts"] + 1})


@pytest.mark.parametrize("price", [costs.el2n, costs.grand, costs.self_influence])
def test_prices_of_sequences_add_up_their_tokens(price):
    """A text said twice in one sample pulls twice as hard as in a sample of its own."""
    scores = pruner().measure(Tagger())
    found = price(scores)
    assert found.shape == (60,)
    assert bool((found >= 0).all())
    if price is costs.grand:
        dense = torch.cat(list(scores.measurements.rows().dense_chunks()))
        torch.testing.assert_close(found, dense.flatten(1).norm(dim=1), rtol=1e-5, atol=1e-8)


def test_what_a_user_may_do_wrong():
    words, targets = texts(ragged=False)
    model = Tagger(tags=WORDS)
    batch = {"input_ids": words, "labels": words}
    with pytest.raises(ValueError, match=r"its own target; pass TokenCrossEntropy\(shift=True\)"):
        TokenCrossEntropy()(model, batch)
    assert TokenCrossEntropy(shift=True)(model, batch).shape == (6,)
    with pytest.raises(ValueError, match=r"takes outputs of shape \(batch, tokens, classes\)"):
        TokenCrossEntropy()(nn.Linear(3, 2), (torch.randn(4, 3), torch.zeros(4).long()))
    with pytest.raises(ValueError, match=r"targets \[4, 7\] are out of range: the layer has 4 out"):
        TokenCrossEntropy()(
            Tagger(), (words, targets.clone().fill_(7).index_fill_(1, torch.tensor(0), 4))
        )
    with pytest.raises(ValueError, match="none of the tokens of 6 sequences has a loss"):
        pruner(TensorDataset(words, torch.full_like(targets, -100)), collate_fn=None).measure(
            Tagger()
        )


@pytest.mark.parametrize("curvature", [KroneckerCurvature(), IdentityCurvature()])
def test_curvatures_for_gradients_of_rank_one_are_refused(curvature):
    with pytest.raises(
        ValueError, match="takes samples with one gradient of rank one, not sequences"
    ):
        pruner(curvature=curvature).select(Tagger())


def test_a_function_behind_the_head_is_refused():
    class Sharp(Tagger):
        def forward(self, input_ids):
            return 2 * super().forward(input_ids)

    with pytest.raises(ValueError, match="are not those of layer 'head' at every token"):
        pruner().select(Sharp())


def test_plain_losses_say_which_one_takes_tokens():
    with pytest.raises(ValueError, match=r"pass losses=TokenCrossEntropy\(\)"):
        pruner(losses=None).select(Tagger())


def test_the_default_takes_large_vocabularies_too():
    model = Tagger(tags=2000)
    with torch.no_grad():
        model.head.weight.mul_(60)
    found = pruner().select(model)
    assert found.metadata["curvature"] == "BlockCurvature"
    assert len(found.pruned) == 24
    with pytest.raises(
        ValueError, match="64 most probable are kept of each token, and .* elsewhere"
    ):
        pruner().select(Tagger(tags=2000))
    with torch.no_grad():
        model.head.weight.div_(3)
    with pytest.warns(UserWarning, match="shifts may be off by about as much"):
        pruner().select(model)

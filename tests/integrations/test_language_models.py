"""A causal language model of transformers, from end to end, without a download."""

from pydoc_data.topics import topics

import pytest
import torch
import torch.nn.functional as F

from prunesampler import Budget, InfluencePruner, TokenCrossEntropy

transformers = pytest.importorskip("transformers")
LENGTH = 24


class Passages(torch.utils.data.Dataset):
    """Python's own help as bytes, a passage each, with the labels that causal models expect."""

    def __init__(self, count=120):
        text = " ".join(topics[name] for name in sorted(topics)[:20]).encode()
        self.ids = torch.tensor(list(text[: count * LENGTH])).clamp(max=127).view(count, LENGTH)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def network(**options):
    torch.manual_seed(0)
    settings = {"vocab_size": 128, "n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**settings, **{"tie_word_embeddings": False, **options})
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    data = Passages()
    for _ in range(20):
        loss = model(input_ids=data.ids, labels=data.ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def pruner(**options):
    losses = TokenCrossEntropy(shift=True)
    return InfluencePruner(
        Passages(),
        budget=Budget(fraction=0.4),
        losses=losses,
        batch_size=16,
        progress=False,
        **options,
    )


def test_a_causal_language_model():
    model = network()
    selection = pruner().select(model)
    assert selection.metadata["layer"] == "lm_head"
    assert len(selection.pruned) == 48
    assert selection.beats_random
    ids = Passages().ids
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss)
    assert selection.metadata["mean_loss"] == pytest.approx(expected, rel=1e-4)


def test_gradients_are_those_of_the_loss_that_transformers_computes():
    model, data = network(), Passages()
    scores = pruner().measure(model)
    rows = scores.influence.gradients
    chosen = torch.tensor([3, 50, 99])
    for i in chosen.tolist():
        logits = model(input_ids=data.ids[i : i + 1]).logits
        value = F.cross_entropy(logits[0, :-1], data.ids[i, 1:], reduction="sum")
        (expected,) = torch.autograd.grad(value, model.lm_head.weight)
        dense = scores.measurements.hessian.expand(rows.sum(torch.tensor([i])))
        torch.testing.assert_close(dense.float() / rows.scale, expected, atol=1e-4, rtol=1e-3)


def test_tied_embeddings_are_refused_by_name():
    with pytest.raises(ValueError, match=r"shares its weight with 'transformer.wte.weight'.*untie"):
        pruner().select(network(tie_word_embeddings=True))

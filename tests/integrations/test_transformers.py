"""Under the Hugging Face Trainer: counts, schedule, accumulation and resuming, and what is refused."""

import warnings
from itertools import chain
from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import Jobs
from jobs import pruner
from torch.utils.data import TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from transformers_jobs import (
    Mappings,
    Model,
    PruningTrainer,
    Texts,
    arguments,
    padded,
    tokenizer,
)

from prunesampler import InfluencePrunedSampler
from prunesampler.base.files import pack_state, unpack_state
from prunesampler.integrations.transformers import FILE, PruningCallback

pytestmark = pytest.mark.slow
EVERYWHERE = ["plan", "resume"]
job = Jobs("transformers_jobs.py", {1: [*EVERYWHERE, "twice", "refusals"], 2: EVERYWHERE})


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, num_labels=3,
        )
    )  # fmt: skip


def gpt2():
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, num_labels=3,
            pad_token_id=0, bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip


def train(folder, model, data, chooser, **options):
    """Two epochs on all samples, one on the kept ones; the callback."""
    sampler = InfluencePrunedSampler(data, epoch_length="constant")
    settings = options.pop("pruning", {})
    pruning = PruningCallback(sampler, chooser, **{"warmup_epochs": 2, **settings})
    checkpoint = options.pop("checkpoint", None)
    passed = {
        key: options.pop(key) for key in ("data_collator", "processing_class") if key in options
    }
    trainer = PruningTrainer(
        model, arguments(folder, num_train_epochs=3, eval_strategy="no", **options),
        train_dataset=data, callbacks=[pruning], **passed,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    return pruning


@pytest.mark.parametrize(
    ("form", "collator", "label"),
    [
        ("datasets", "own", "label"),
        ("datasets", "padding", "label"),
        ("datasets", "tokenizer", "labels"),
        ("torch", "own", "label"),
        ("torch", "padding", "label_ids"),
        ("torch", "tokenizer", "label"),
    ],
)
def test_samples_are_put_together_as_by_the_trainer(form, collator, label, tmp_path):
    """Texts of many lengths, with a column that no model takes and labels under another name."""
    texts = Texts(label)
    data = datasets.Dataset.from_list(texts.rows) if form == "datasets" else texts
    given = {
        "own": {"data_collator": padded},
        "padding": {"data_collator": DataCollatorWithPadding(tokenizer())},
        "tokenizer": {"processing_class": tokenizer()},
    }[collator]
    pruning = train(tmp_path, bert(), data, pruner(data), **given)
    assert len(pruning.selection.kept) == len(pruning.sampler.kept) == 60


def test_the_lent_collator_gives_what_an_own_one_would(tmp_path):
    texts = Texts("label")
    model = bert()
    pruning = train(tmp_path, model, texts, pruner(texts), data_collator=padded)

    def plain(rows):
        return padded([{k: v for k, v in row.items() if k != "text"} for row in rows])

    lent, expected = pruning.pruning.pruner, pruner(texts, collate_fn=plain)
    assert lent.select(model).kept.tolist() == expected.select(model).kept.tolist()


def test_a_collate_fn_of_the_pruners_own_stays(tmp_path):
    seen = []

    def own(rows):
        seen.append(sorted(rows[0]))
        return padded(rows)

    texts = Texts("label")
    train(tmp_path, bert(), texts, pruner(texts, collate_fn=own), data_collator=padded)
    assert seen
    assert all(keys == ["input_ids", "label", "text"] for keys in seen)


def test_columns_stay_where_the_trainer_keeps_them(tmp_path):
    seen = []

    def own(rows):
        seen.append(sorted(rows[0]))
        return padded(rows)

    texts = Texts("label")
    train(tmp_path, bert(), texts, pruner(texts), data_collator=own, remove_unused_columns=False)
    assert {tuple(keys) for keys in seen} == {("input_ids", "label", "text")}


def test_pairs_are_put_together_as_before(tmp_path):
    """The scored set need not be of the Trainer's form."""
    data, pairs = Mappings(indexed=False), TensorDataset(*Mappings().pairs)
    assert len(train(tmp_path, Model(), data, pruner(pairs)).sampler.kept) == 120


def test_a_decoder_that_classifies(tmp_path):
    texts = Texts("label")
    pruning = train(tmp_path, gpt2(), texts, pruner(texts), processing_class=tokenizer())
    assert len(pruning.sampler.kept) == 60


def test_functions_of_the_trainer(tmp_path):
    pruning = PruningCallback(
        lambda trainer: InfluencePrunedSampler(trainer.train_dataset, epoch_length="constant"),
        lambda trainer: pruner(trainer.train_dataset),
    )
    settings = arguments(tmp_path, num_train_epochs=6, eval_strategy="no")
    trainer = PruningTrainer(
        Model(), settings, train_dataset=Mappings(indexed=False), callbacks=[pruning]
    )
    for _ in range(2):
        trainer.train()
        assert len(pruning.sampler.kept) == 120


@pytest.mark.parametrize("saves", [True, False])
def test_every_node_that_saves_has_the_state(saves, few_digits, tmp_path):
    sampler = InfluencePrunedSampler(few_digits, epoch_length="constant")
    pruning = PruningCallback(sampler, pruner(few_digits))
    (tmp_path / "checkpoint-7").mkdir()
    # On the second node of save_on_each_node=True, the first process saves and is not the run's first.
    settings = SimpleNamespace(should_save=saves, output_dir=str(tmp_path))
    state = SimpleNamespace(is_world_process_zero=not saves, global_step=7)
    pruning.on_save(settings, state, None)
    assert (tmp_path / "checkpoint-7" / FILE).exists() == saves


def test_checkpoints_with_the_kept_set_as_a_tensor(tmp_path):
    """As releases before the base64 text wrote them."""
    data = Mappings(indexed=False)
    whole = train(tmp_path / "whole", Model(), data, pruner(data), save_strategy="epoch")
    folder = tmp_path / "whole" / "checkpoint-26"
    state = unpack_state((folder / FILE).read_bytes())
    state["sampler"]["kept"] = whole.sampler.kept
    state.pop("data", None)
    (folder / FILE).write_bytes(pack_state(state))
    again = train(tmp_path / "again", Model(), data, pruner(data), checkpoint=str(folder))
    assert again.sampler.kept.tolist() == whole.sampler.kept.tolist()
    assert again.selection is None


def test_a_run_that_goes_on_without_a_selection(tmp_path):
    def broken(model, batch):
        raise ValueError("no such luck")

    data = Mappings(indexed=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pruning = train(
            tmp_path, Model(), data, pruner(data, losses=broken), pruning={"on_error": "continue"}
        )
    assert len(pruning.sampler.kept) == 200
    assert sum("no such luck" in str(each.message) for each in said) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_schedule_and_evaluations_are_those_of_the_plan(processes):
    ranks = job("plan", processes)
    full, pruned = (13, 8) if processes == 1 else (7, 4)
    for name in ranks[0]["found"]:
        rows = [rank["found"][name] for rank in ranks]
        constant, accumulate = name.startswith("constant"), int(name[-1])
        kept, later = rows[0]["kept"], full if constant else pruned
        assert len(kept) == 120
        for row in rows:
            assert len(row["batches"]) == 2 * full + 3 * later, name
            steps = 2 * -(-full // accumulate) + 3 * -(-later // accumulate)
            assert row["steps"] == row["max_steps"] == row["planned"] == steps, name
            assert row["lr"] == pytest.approx(0, abs=1e-9)
            assert row["evaluations"] == 5
            assert row["kept"] == kept
            assert row["epoch"] == 5 if constant else 4 < row["epoch"] < 5
            (logged,) = row["logged"]
            assert logged["pruning/kept"] == 120
            assert logged["step"] == 2 * -(-full // accumulate)
        first = set().union(*(chain(*row["batches"][: 2 * full]) for row in rows))
        assert first == set(range(200))
        for epoch in range(3):
            start = 2 * full + epoch * later
            drawn = [list(chain(*row["batches"][start : start + later])) for row in rows]
            assert set().union(*drawn) == set(kept)
            length = 200 if constant else 120  # accelerate fills the last batches up
            assert length <= sum(map(len, drawn)) <= 16 * processes * later


@pytest.mark.parametrize("processes", [1, 2])
def test_every_checkpoint_leads_to_the_same_end(processes):
    for rank in job("resume", processes):
        whole = rank["whole"]
        for step, rest in rank["rest"].items():
            assert rest["batches"] == whole["batches"][int(step) :]
            for name in ("weights", "kept", "steps", "lr", "epoch"):
                assert rest[name] == whole[name], (step, name)
        ended, rest = rank["ended"], rank["rest of ended"]
        assert rest["batches"] == ended["batches"][-len(rest["batches"]) :]
        assert rest["weights"] == ended["weights"]


def test_a_second_training_starts_anew():
    (found,) = job("twice", 1)
    assert found["found"] == {"constant": [[65, 65]] * 2, "shrink": [[50, 50]] * 2}


def test_what_the_trainer_cannot_do_is_refused():
    (found,) = job("refusals", 1)
    for name, message in {
        "resume": "cannot be resumed once it is pruned; use InfluencePrunedSampler(..., epoch_length=",
        "missing": "has no pruning.safetensors: it was saved without this callback",
        "max_steps": "max_steps=30 is counted in full epochs",
        "accumulation": "gradient_accumulation_steps=3 does not divide the 8 batches",
        "fraction": "num_train_epochs=2.5 is not whole",
        "lengths": "train_sampling_strategy='group_by_length' would be lost",
        "batch size": "auto_find_batch_size=True changes the steps while it runs",
        "no mixin": "derive it from PruningTrainerMixin",
    }.items():
        assert message in found[name], name

"""Names of classes: from datasets of every make, and none where there are none."""

from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Subset

from prunesampler.select.samples import LABELS, Names, read_samples

ANIMALS = ("cat", "dog", "<b>emu</b>")


def of(**fields):
    """A dataset with these attributes."""
    return SimpleNamespace(**fields)


def featured(**columns):
    return of(features=columns)


def hugging_face(column="label", kind=None):
    kind = ClassLabel(names=list(ANIMALS)) if kind is None else kind
    return Dataset.from_dict(
        {"text": ["a", "b", "c", "d"], column: [0, 1, 2, 1]},
        features=Features({"text": Value("string"), column: kind}),
    )


def nested(dataset, times):
    for _ in range(times):
        dataset = Subset(dataset, [0, 1])
    return dataset


@pytest.mark.parametrize("column", LABELS)
def test_a_hugging_face_dataset_names_its_classes(column):
    data = hugging_face(column)
    assert Names.in_dataset(data).known == ANIMALS
    samples = read_samples(data, range(4))
    assert [Names.in_dataset(data).of(samples[i].label) for i in range(4)] == [
        data.features[column].int2str(data[i][column]) for i in range(4)
    ]


def test_a_dataset_of_other_features_names_none():
    assert Names.in_dataset(hugging_face("animal")).known == ()
    assert Names.in_dataset(hugging_face(kind=Value("int64"))).known == ()
    words = Features({"labels": Sequence(ClassLabel(names=list(ANIMALS)))})
    assert Names.in_dataset(Dataset.from_dict({"labels": [[0, 1]]}, features=words)).known == ()


@pytest.mark.parametrize("data", [of(classes=list(ANIMALS)), of(classes=ANIMALS), hugging_face()])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_part_has_the_names_of_the_whole(data, times):
    assert Names.in_dataset(nested(data, times)).known == ANIMALS


def test_the_names_are_those_of_the_labels_that_are_shown():
    data = featured(label=of(), labels=of(names=["wrong"]))  # samples show "label"
    assert Names.in_dataset(data).known == ()
    assert Names.in_dataset(of(classes=["a"], features={"label": of(names=["b"])})).known == ("a",)
    assert Names.in_dataset(ConcatDataset([hugging_face(), hugging_face()])).known == ()


class Raising:
    """Every attribute fails, as properties of the user's code may."""

    def __getattribute__(self, name):
        raise RuntimeError("no")


class Failing(dict):
    """A mapping that cannot be asked."""

    def __contains__(self, name):
        raise ZeroDivisionError


def circular():
    part = Subset([0], [0])
    part.dataset = part
    return part


HOSTILE = [
    None, 3, "text", [], [(1, 2)], Raising(), nested(Raising(), 2), circular(), nested(of(), 1000),
    of(classes=3), of(classes="cat"), of(classes=["cat", 3]), of(classes={"cat": 0}), of(classes=lambda: ["cat"]),
    of(features=[1.0]), of(features=Failing()), of(features=Raising()), of(features=featured), of(features="label"),
    featured(), featured(label=None), featured(label=Raising()), featured(label=of(names=None)),
    featured(label=of(names="cat")), featured(label=of(names=[0, 1])), featured(label=of(names=lambda: ["cat"])),
    featured(name=of(names=["cat"])),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(HOSTILE)))
def test_without_names_there_are_numbers(place):
    names = Names.in_dataset(HOSTILE[place])
    assert names.known == ()
    assert names.of(7) == "7"


ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*LABELS, "names", "x"]), inner, max_size=3)
        | st.builds(lambda names: of(names=names), inner)
        | st.builds(lambda c, f: of(classes=c, features=f), inner, inner)
        | st.builds(lambda data: Subset(data, [0]), inner)
    ),
    max_leaves=12,
)


@given(ANYTHING)
def test_whatever_a_dataset_is_names_are_texts(dataset):
    known = Names.in_dataset(dataset).known
    assert isinstance(known, tuple)
    assert all(isinstance(name, str) for name in known)

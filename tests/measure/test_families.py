"""Networks as people use them, small and untrained: which layer is measured, and what is refused."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset, default_collate

from prunesampler import (
    Budget,
    CrossEntropy,
    HeadGradients,
    InfluencePruner,
    anneal,
)

pytestmark = [
    pytest.mark.slow,
    # Eight random samples for thousands of parameters: any two are as good.
    pytest.mark.filterwarnings("ignore:.*no better chosen than at random:UserWarning"),
]
SAMPLES, CLASSES, LENGTH = 8, 3, 8


def torchvision(name, **options):
    network = getattr(pytest.importorskip("torchvision.models"), name)
    if not isinstance(network, type):
        options = {"weights": None, **options}
    return network(num_classes=CLASSES, **options)


def timm(name, **options):
    library = pytest.importorskip("timm")
    return library.create_model(name, pretrained=False, num_classes=CLASSES, **options)


def transformers(name, **options):
    network = getattr(pytest.importorskip("transformers"), name)
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "num_labels": CLASSES, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    return network(network.config_class(**{**sizes, **options}))


def bfloat16(build, *args, **options):
    return build(*args, **options).bfloat16()


def segmentation(name):
    models = pytest.importorskip("torchvision.models.segmentation")
    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=CLASSES)


def with_positions_that_differ(build, *args):
    """As after training: untrained, all positions of an image look the same to the classifier."""
    model = build(*args)
    classifier = model.classifier[1]
    with torch.no_grad():
        features = model.features(torch.stack([x for x, _ in images(64)]))
        classifier.bias -= classifier(features).mean((0, 2, 3))
    return model


def images(pixels):
    return TensorDataset(torch.randn(SAMPLES, 3, pixels, pixels), torch.arange(SAMPLES) % CLASSES)


def texts(labels="sequence"):
    """Token ids from 3 up, of several lengths, with an end (2) and padding (0)."""
    items = []
    for i in range(SAMPLES):
        mask = (torch.arange(LENGTH) < 4 + i % 4).long()
        ids = torch.randint(3, 50, (LENGTH,)) * mask
        ids[mask.sum() - 1] = 2
        given = torch.tensor(i % CLASSES)
        if labels == "token":
            given = torch.where(mask == 1, ids % CLASSES, 0)
        elif labels == "next token":
            given = ids
        elif labels == "choice":
            ids, mask, given = torch.stack([ids, ids.flip(0)]), torch.stack([mask, mask]), given % 2
        items.append({"input_ids": ids, "attention_mask": mask, "labels": given})
    return items


def pictures():
    """Images as the processors of transformers give them."""
    return [{"pixel_values": x, "labels": y} for x, y in images(32)]


def sounds():
    return [
        {"input_values": torch.randn(800), "labels": torch.tensor(i % CLASSES)}
        for i in range(SAMPLES)
    ]


def row(layer, data, build, *args, head=None, **options):
    """A network, its data, and the layer that is expected to be measured."""
    return pytest.param(
        layer, data, partial(build, *args, **options), head, id=identifier(build, args, head)
    )


def identifier(build, args, more):
    names = [getattr(part, "__name__", part) for part in (build, *args, more) if part is not None]
    return "-".join(names)


SMALL = partial(images, 32)
RANDOM = {"init_weights": False}  # the library's own takes seconds, or makes logits of 1e7
VIT = {
    "image_size": 32,
    "patch_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 32,
    "mlp_dim": 64,
}
SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 24,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": [2, 2],
}
MAXVIT = {
    "input_size": (64, 64),
    "stem_channels": 8,
    "partition_size": 2,
    "block_channels": [8, 8, 16, 16],
    "block_layers": [1, 1, 1, 1],
    "head_dim": 4,
    "stochastic_depth_prob": 0.0,
}
GROUPED = {"num_key_value_heads": 1}
SCORED = [
    row("fc", SMALL, torchvision, "resnet18"),
    row("fc", SMALL, torchvision, "resnet50"),
    row("classifier.6", partial(images, 64), torchvision, "alexnet"),
    row("classifier.6", SMALL, torchvision, "vgg11", **RANDOM),
    row("classifier.1", SMALL, torchvision, "squeezenet1_1"),
    row("classifier", SMALL, torchvision, "densenet121"),
    row("fc", partial(images, 75), torchvision, "inception_v3", **RANDOM),
    row("fc", SMALL, torchvision, "googlenet", **RANDOM),
    row("fc", SMALL, torchvision, "shufflenet_v2_x0_5"),
    row("classifier.1", SMALL, torchvision, "mobilenet_v2"),
    row("classifier.3", SMALL, torchvision, "mobilenet_v3_small"),
    row("classifier.1", SMALL, torchvision, "efficientnet_b0"),
    row("classifier.1", SMALL, torchvision, "mnasnet0_5"),
    row("fc", SMALL, torchvision, "regnet_y_400mf"),
    row("head", SMALL, torchvision, "SwinTransformer", **SWIN),
    row("classifier.2", SMALL, torchvision, "convnext_tiny"),
    row("heads.head", SMALL, torchvision, "VisionTransformer", **VIT),
    row("classifier.5", partial(images, 64), torchvision, "MaxVit", **MAXVIT),
    row("fc", SMALL, timm, "resnet10t"),
    row("classifier", SMALL, timm, "mobilenetv3_small_050"),
    row("classifier", SMALL, timm, "mobilenetv4_conv_small_035"),
    row("classifier", SMALL, timm, "hardcorenas_a"),
    row("classifier", SMALL, timm, "ghostnet_050"),
    row("classifier", SMALL, timm, "efficientnet_lite0"),
    row("head.fc", SMALL, timm, "regnetx_002"),
    row("head.fc", SMALL, timm, "resnetv2_18"),
    row("head.fc", SMALL, timm, "test_nfnet"),
    row("head.fc", SMALL, timm, "nf_regnet_b0"),
    row("head.fc", SMALL, timm, "repvgg_a0"),
    row("classifier", SMALL, timm, "dpn48b"),
    row("head.fc", SMALL, timm, "convnext_atto"),
    row("head.fc", SMALL, timm, "edgenext_xx_small"),
    row("head.fc", SMALL, timm, "coatnet_nano_rw_224", img_size=32),
    row("head.fc", SMALL, timm, "maxxvit_rmlp_nano_rw_256", img_size=32),
    row(
        "head.fc",
        SMALL,
        timm,
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=2,
        depths=(1, 1, 1, 1),
    ),
    row("head", SMALL, timm, "vit_tiny_patch16_224", img_size=32, depth=2),
    row(
        "head",
        SMALL,
        timm,
        "beit_base_patch16_224",
        img_size=32,
        depth=1,
        embed_dim=48,
        num_heads=3,
    ),
    row("head", SMALL, timm, "mixer_s32_224", img_size=32),
    row("head", SMALL, timm, "gmlp_ti16_224", img_size=32),
    row("head", SMALL, timm, "cait_xxs24_224", img_size=32, depth=2),
    row("head", SMALL, timm, "xcit_nano_12_p16_224", img_size=32),
    row("head.fc", SMALL, timm, "mobilevit_xxs"),
    row("head.fc", SMALL, timm, "poolformer_s12"),
    row("head.fc.fc2", SMALL, timm, "convformer_s18"),
    row("head.fc2", SMALL, timm, "inception_next_atto"),
    row("head", SMALL, timm, "deit_tiny_distilled_patch16_224", img_size=32, depth=1, head="head"),
    row("head.linear", SMALL, timm, "levit_128s", img_size=32, head="head.linear"),
    row("classifier", texts, transformers, "BertForSequenceClassification"),
    row("classifier.out_proj", texts, transformers, "RobertaForSequenceClassification"),
    row(
        "classifier",
        texts,
        transformers,
        "DistilBertForSequenceClassification",
        dim=32,
        n_layers=1,
        n_heads=2,
        hidden_dim=64,
    ),
    row("classifier", texts, transformers, "DebertaV2ForSequenceClassification"),
    row(
        "classifier",
        texts,
        transformers,
        "ModernBertForSequenceClassification",
        cls_token_id=1,
        sep_token_id=2,
    ),
    row("classifier", texts, transformers, "AlbertForSequenceClassification", embedding_size=16),
    row(
        "logits_proj",
        texts,
        transformers,
        "XLNetForSequenceClassification",
        d_model=32,
        n_layer=1,
        n_head=2,
        d_inner=64,
    ),
    row(
        "score",
        texts,
        transformers,
        "GPT2ForSequenceClassification",
        n_embd=32,
        n_layer=1,
        n_head=2,
    ),
    row("score", texts, transformers, "LlamaForSequenceClassification", **GROUPED),
    row("score", texts, transformers, "Qwen2ForSequenceClassification", **GROUPED),
    row("score", texts, transformers, "Gemma2ForSequenceClassification", **GROUPED, head_dim=16),
    row(
        "classification_head.out_proj",
        texts,
        transformers,
        "T5ForSequenceClassification",
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    ),
    row(
        "classifier",
        pictures,
        transformers,
        "ViTForImageClassification",
        image_size=32,
        patch_size=16,
    ),
    row(
        "classifier.1",
        pictures,
        transformers,
        "ResNetForImageClassification",
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
    ),
    row(
        "classifier",
        sounds,
        transformers,
        "Wav2Vec2ForSequenceClassification",
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
    ),
    row("head", SMALL, bfloat16, timm, "vit_tiny_patch16_224", img_size=32, depth=2),
    row("head.fc", SMALL, bfloat16, timm, "resnetv2_18"),
    row("score", texts, bfloat16, transformers, "LlamaForSequenceClassification", **GROUPED),
]


def by_autograd(model, name, batch):
    """Gradient of every sample's cross-entropy by the layer's weight and bias, as in training."""
    layer = model.eval().requires_grad_(False).get_submodule(name)
    by = [p.requires_grad_() for p in (layer.weight, layer.bias) if p is not None]
    dtype = layer.weight.dtype
    if isinstance(batch, dict):
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        labels = inputs.pop("labels")
        outputs = model(**inputs).logits
    else:
        labels, outputs = batch[1], model(batch[0].to(dtype))
    rows = []
    for loss in F.cross_entropy(outputs.float(), labels, reduction="none"):
        parts = torch.autograd.grad(loss, by, retain_graph=True)
        rows.append(torch.cat([part.reshape(len(layer.weight), -1) for part in parts], dim=1))
    return torch.stack(rows).float()


@pytest.mark.parametrize(("layer", "data", "build", "head"), SCORED)
def test_the_classifier_is_measured(layer, data, build, head):
    torch.manual_seed(0)
    model, dataset = build(), data()
    classifier = model.get_submodule(layer)
    assert len(classifier.weight) == CLASSES
    pruner = InfluencePruner(
        dataset,
        budget=Budget(count=2, min_per_class=0),
        head=head,
        solver=partial(anneal, moves=1000),
        progress=False,
    )
    selection = pruner.select(model)
    assert selection.metadata["layer"] == layer
    assert len(selection.pruned) == 2

    few = default_collate([dataset[0], dataset[3]])
    found = HeadGradients(layer, CrossEntropy())(model.eval(), few)
    expected = by_autograd(model, layer, few)
    difference = (
        (found.delta[:, :, None] * found.inputs[:, None, :] - expected).flatten(1).norm(dim=1)
    )
    tolerance = 1e-3 if classifier.weight.dtype == torch.float32 else 5e-2
    assert (difference < tolerance * expected.flatten(1).norm(dim=1)).all()


def per_token(model, batch):
    """The mean over a text's tokens, as language models are trained."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits.mT, batch["labels"], reduction="none").mean(1)


def choices(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction="none")


GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2}
PER_TOKEN = r"pass losses=TokenCrossEntropy\(\) for a cross-entropy at every token"
TOKENS, NEXT = partial(texts, "token"), partial(texts, "next token")
CHOICE = partial(texts, "choice")


def refused(message, data, build, *args, losses=None, error=ValueError, **options):
    own = losses and losses.__name__
    return pytest.param(
        message, error, data, partial(build, *args, **options), losses,
        id=identifier(build, args, own),
    )  # fmt: skip


def two(first, second):
    """Two classifiers whose outputs are averaged."""
    return rf"2 last linear layers that cannot be told apart: \['{first}', '{second}'\].*head="


REFUSED = [
    refused(
        two("head", "head_dist"),
        SMALL,
        timm,
        "deit_tiny_distilled_patch16_224",
        img_size=32,
        depth=1,
    ),
    refused(two("head.linear", "head_dist.linear"), SMALL, timm, "levit_128s", img_size=32),
    refused(two("head.0", "head.1"), partial(images, 240), timm, "crossvit_9_240"),
    refused(two("aux_head", "head"), SMALL, timm, "volo_d1_224", img_size=32),
    refused(two("head.head.l", "head.head_dist.l"), SMALL, timm, "repvit_m0_9"),
    refused(
        rf"layer 'classifier.1' is applied at 9 positions.*{PER_TOKEN}.*head=",
        partial(images, 64),
        with_positions_that_differ,
        torchvision,
        "squeezenet1_1",
    ),
    refused(
        "returned OrderedDict.*run=",
        partial(images, 64),
        segmentation,
        "lraspp_mobilenet_v3_large",
        error=TypeError,
    ),
    refused(rf"\(2, 8, 3\): {PER_TOKEN}", TOKENS, transformers, "BertForTokenClassification"),
    refused(
        rf"layer 'classifier' .*{PER_TOKEN}.*head=",
        TOKENS,
        transformers,
        "BertForTokenClassification",
        losses=per_token,
    ),
    refused(rf"\(2, 8, 50\): {PER_TOKEN}", NEXT, transformers, "GPT2LMHeadModel", **GPT2),
    refused(
        "layer 'lm_head' shares its weight with 'transformer.wte.weight'.*untie.*head=",
        NEXT,
        transformers,
        "GPT2LMHeadModel",
        losses=per_token,
        **GPT2,
    ),
    refused(
        rf"layer 'lm_head' .*{PER_TOKEN}.*head=",
        NEXT,
        transformers,
        "GPT2LMHeadModel",
        losses=per_token,
        tie_word_embeddings=False,
        **GPT2,
    ),
    refused(
        "layer 'classifier' got 4 rows for 2 samples.*head=",
        CHOICE,
        transformers,
        "BertForMultipleChoice",
    ),
    refused(
        "layer 'classifier' got 4 rows for 2 samples.*head=",
        CHOICE,
        transformers,
        "BertForMultipleChoice",
        losses=choices,
    ),
]


@pytest.mark.parametrize(("message", "error", "data", "build", "losses"), REFUSED)
def test_what_cannot_be_measured_is_refused_with_a_way_out(message, error, data, build, losses):
    torch.manual_seed(0)
    budget = Budget(count=2, min_per_class=0)
    pruner = InfluencePruner(data(), budget=budget, losses=losses, progress=False)
    with pytest.raises(error, match=message):
        pruner.select(build())

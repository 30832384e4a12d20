"""The trajectory equals what a run finds that knows its indices; what it cannot know it says once."""

import warnings
from copy import deepcopy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from recording import Loop, Truth, close, distances, indexed, network
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from prunesampler import Budget, InfluencePrunedSampler, PruningCallback
from prunesampler.base.files import pack_state, unpack_state
from prunesampler.train.hardest import TrajectoryPruner
from prunesampler.train.recorder import TrajectoryRecorder
from prunesampler.train.trajectory import Trajectory


def run(loop, epochs=3, **options):
    for _ in range(epochs):
        loop.epoch(**options)
    return loop


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 4},
        {"drop_last": True},
        {"batch_size": 1},
        {"batch_size": 100},
        {"loader": StatefulDataLoader},
        {"loader": StatefulDataLoader, "num_workers": 2},
        {"sampler": {"num_replicas": 2, "rank": 1}},
        {"sampler": {"shuffle": False}},
        {"head": "3"},
    ],
)
def test_a_plain_loop(options):
    loop = run(Loop(**options))
    assert loop.recorder.trajectory.exact
    assert loop.recorder.trajectory.layer == "3"
    assert loop.is_right()
    unseen = 4 * 3 if options.get("drop_last") else 30 * 3 if "num_replicas" in str(options) else 0
    assert int(loop.found.isnan().sum()) == unseen


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_that_are_left_early_and_those_after(workers):
    loop = Loop(n=200, num_workers=workers)  # so many that workers have not read to the end
    for stop in (3, None, 1, None):
        loop.sampler.set_epoch(len(loop.truth.rows))
        loop.epoch(stop=stop)
    assert (~loop.found.isnan()).sum(1).tolist() == [24, 200, 8, 200]
    assert loop.is_right()


def test_repeated_samples_of_a_constant_length():
    loop = Loop(sampler={"epoch_length": "constant"})
    loop.epoch()
    loop.sampler.restrict(range(0, 60, 3))
    run(loop, 2)
    assert sum(map(len, loop.batches)) == 180
    assert loop.is_right()  # the last of a sample's several errors, in both


def test_pruned_epochs_leave_the_others_unseen():
    loop = run(Loop(), 1)
    loop.sampler.restrict(range(13))
    run(loop, 2)
    assert (~loop.found.isnan()).sum(1).tolist() == [60, 13, 13]
    assert loop.is_right()


class Accumulating(Loop):
    """Steps after every third batch, and after the last."""

    def epoch(self):
        self.model.train()
        self.truth.begin()
        for k, (x, y, index) in enumerate(self.loader):
            (self.step(x, y, index) / 3).backward()
            if k % 3 == 2 or k + 1 == len(self.loader):
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.recorder.on_epoch_end()


class Together(Loop):
    """One backward pass through the losses of three batches, which were read before."""

    def epoch(self):
        self.model.train()
        self.truth.begin()
        batches = iter(self.loader)
        while some := list(islice(batches, 3)):
            loss = sum(self.step(*batch) for batch in some)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.recorder.on_epoch_end()


class Ahead(Loop):
    """Reads a batch ahead, as scripts do that copy it to the device meanwhile."""

    def epoch(self):
        self.model.train()
        self.truth.begin()
        batches = iter(self.loader)
        coming = next(batches)
        while coming is not None:
            here, coming = coming, next(batches, None)
            self.optimizer.zero_grad()
            self.step(*here).backward()
            self.optimizer.step()
        self.recorder.on_epoch_end()


class Mixed(Loop):
    """In bfloat16, as autocast has it."""

    def step(self, x, y, index):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.model(x)
        assert outputs.dtype == torch.bfloat16
        self.truth.note(index, outputs, y)
        return F.cross_entropy(outputs.float(), y)


class Scaled(Loop):
    """With a loss scaler, which overflows in the first batch and changes later."""

    def epoch(self):
        self.model.train()
        self.truth.begin()
        for k, (x, y, index) in enumerate(self.loader):
            first = len(self.truth.rows) == 1 and k == 0
            scale = float("inf") if first else 65536.0 / 2 ** (k // 3)
            outputs = self.model(x)
            if not first:
                self.truth.note(index, outputs, y)
            self.optimizer.zero_grad()
            (F.cross_entropy(outputs, y) * scale).backward()
            for parameter in self.model.parameters():
                parameter.grad.div_(scale) if not first else parameter.grad.zero_()
            self.optimizer.step()
        self.recorder.on_epoch_end()


class Validating(Loop):
    """Looks at the training set itself within and between epochs, without training on it."""

    def step(self, x, y, index):
        self.model.eval()
        with torch.no_grad():
            self.model(torch.randn(5, 8))
        self.model(torch.randn(8, 8))
        self.model.train()
        with torch.no_grad():
            self.model(torch.randn(8, 8))
        return super().step(x, y, index)

    def epoch(self, **options):
        super().epoch(**options)
        self.model.eval()
        for x, *_ in self.loader:
            self.model(x)


class SmoothedSum(Loop):
    """A sum with label smoothing."""

    def step(self, x, y, index):
        outputs = self.model(x)
        self.truth.note(index, outputs, y, smoothing=0.2)
        return F.cross_entropy(outputs, y, label_smoothing=0.2, reduction="sum") / 50


class NotFinite(Loop):
    """Skips a step whose loss it does not like, after the forward pass."""

    def epoch(self):
        self.model.train()
        self.truth.begin()
        for k, (x, y, index) in enumerate(self.loader):
            if k == 2:
                self.model(x)
                continue
            self.optimizer.zero_grad()
            self.step(x, y, index).backward()
            self.optimizer.step()
        self.recorder.on_epoch_end()


KINDS = [Accumulating, Together, Ahead, Mixed, Scaled, Validating, SmoothedSum, NotFinite]


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in KINDS), (Together, 2), (Ahead, 2), (NotFinite, 2)]
)
def test_loops_as_people_write_them(kind, workers):
    loop = run(kind(num_workers=workers), 2)
    assert loop.recorder.trajectory.exact
    assert loop.is_right(rtol=0.02 if kind is Mixed else 2e-3)


class Checkpointed(nn.Module):
    """Computes its body, or its head, a second time in the backward pass."""

    def __init__(self, where, reentrant):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 4)
        self.where, self.reentrant = where, reentrant

    def forward(self, x):
        if self.where == "whole":  # and what comes after the head
            whole = nn.Sequential(self.body, self.head, nn.LogSoftmax(1))
            return checkpoint(whole, x, use_reentrant=self.reentrant)
        if self.where == "body":
            return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))
        return checkpoint(self.head, self.body(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["body", "head", "whole"])
@pytest.mark.parametrize("head", [None, "head"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing(where, reentrant, head):
    torch.manual_seed(0)
    loop = Loop(Checkpointed(where, reentrant), head=head)
    if where == "whole" and reentrant:  # which needs an input with a gradient
        loop.data.tensors[0].requires_grad_()
    run(loop)
    assert loop.recorder.trajectory.layer == "head"
    assert loop.is_right()


def test_a_layer_that_begins_with_zeros():
    model = network()
    nn.init.zeros_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    loop = run(Loop(model), 2)
    assert loop.recorder.trajectory.exact
    first = loop.batches[0]
    assert loop.found[0, first].isnan().all()  # its outputs did not differ yet
    loop.truth.rows[0][first] = float("nan")
    assert loop.is_right()


class Squared(Loop):
    def step(self, x, y, index):
        outputs = self.model(x)
        errors = (outputs - F.one_hot(y, 4)).square()
        norms = (outputs - F.one_hot(y, 4)).detach().norm(dim=1)
        self.truth.rows[-1][index] = norms / norms.mean()
        return errors.mean()


def test_other_losses_in_shares_of_the_mean_of_their_batch():
    model = network()
    with torch.no_grad():
        model[3].weight *= 5
    loop = run(Squared(model))
    assert not loop.recorder.trajectory.exact
    assert loop.is_right()


class Hinge(Loop):
    """A loss without any gradient where the margin is kept."""

    def step(self, x, y, index):
        return F.multi_margin_loss(100 * F.one_hot(y, 4) + 0 * self.model(x), y)


def test_samples_without_any_gradient_are_the_easiest():
    assert run(Hinge(), 1).found.tolist() == [[0.0] * 60]


def ended(loop, message, epochs=2):
    """The loop warns once, goes on training, and records no wrong number."""
    with pytest.warns(UserWarning, match=message) as caught:
        run(loop, epochs)
    assert len(caught) == 1
    assert "recording of the trajectory ended after" in str(caught[0].message)
    assert close(loop.found, loop.truth.errors[: len(loop.found)])


class Twice(Loop):
    def step(self, x, y, index):
        return super().step(x, y, index) + self.model(x).square().mean()


class Adversarial(Loop):
    """Trains on a second set of inputs from the second epoch on, in some batches."""

    def step(self, x, y, index):
        if len(self.truth.rows) > 1 and len(self.batches) % 5 == 0:
            F.cross_entropy(self.model(x + 0.1 * torch.randn_like(x)), y).backward()
        return super().step(x, y, index)


class Views(Loop):
    def step(self, x, y, index):
        return F.cross_entropy(self.model(torch.cat([x, x])), torch.cat([y, y]))


class BackTwice(Loop):
    def step(self, x, y, index):
        outputs = self.model(x)
        outputs.square().mean().backward(retain_graph=True)
        return F.cross_entropy(outputs, y)


class Skips(Loop):
    """Leaves a batch out before the layer sees it."""

    def epoch(self):
        self.model.train()
        self.truth.begin()
        for k, (x, y, index) in enumerate(self.loader):
            if k != 3:
                self.step(x, y, index).backward()
        self.recorder.on_epoch_end()


class Peeks(Loop):
    """Looks at a batch of another pass within an epoch."""

    def step(self, x, y, index):
        if len(self.batches) == 3:
            next(iter(self.loader))
        return super().step(x, y, index)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Twice, "twice"),
        (Adversarial, "after 1 epochs: .*other data is trained on"),
        (Views, "16 rows for a batch of 8 samples"),
        (BackTwice, "two backward passes went through one batch"),
        (Skips, "a batch that the layer was not given"),
        (Peeks, "not given out yet"),
    ],
)
@pytest.mark.parametrize("head", [None, "3"])
def test_what_is_not_one_pass_a_batch_is_said_once_and_training_goes_on(kind, message, head):
    loop = kind(head=head)
    ended(loop, message)
    assert loop.recorder.trajectory.num_samples == 60


@pytest.mark.parametrize("kind", [Twice, Adversarial, Skips])
def test_also_with_workers_that_run_ahead(kind):
    ended(kind(num_workers=2, n=200), "recording of the trajectory ended")


def test_another_loader_or_model_is_not_recorded():
    loop = Loop()
    loop.loader = DataLoader(loop.data, 8, sampler=InfluencePrunedSampler(loop.data))
    with pytest.warns(UserWarning, match="another loader is iterated"):
        run(loop)
    loop = Loop()
    loop.model = network()
    with pytest.warns(UserWarning, match="not the one given"):
        run(loop)
    assert len(loop.found) == 0


def test_a_pass_before_the_loader_s_first_is_nobody_s():
    loop = Loop(head="3")
    loop.model(torch.randn(2, 8)).sum().backward()
    assert run(loop).is_right()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_model_is_said_to_be_one(fullgraph):
    loop = Loop()
    plain, loop.model = loop.model, torch.compile(loop.model, backend="eager", fullgraph=fullgraph)
    with pytest.warns(UserWarning, match="the model is compiled") as caught:
        run(loop, 2)
    assert len(caught) == 1
    torch.compiler.reset()
    loop = Loop(plain)
    plain[:3].compile(backend="eager")  # the layer itself stays as it is
    assert run(loop, 2).is_right()
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [Loop, Twice, Mixed])
def test_losses_and_random_numbers_are_bitwise_as_without(kind):
    found = []
    for recorded in (False, True):
        torch.manual_seed(3)
        loop = kind(recorded=recorded)
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(loop)
        found.append((loop.losses, loop.model[3].weight.tolist(), torch.rand(3).tolist()))
    assert found[0] == found[1]


def test_an_error_in_the_recorder_does_not_stop_the_run(monkeypatch):
    def fails(*args):
        raise MemoryError("no room")

    monkeypatch.setattr("prunesampler.train.errors.scales_of", fails)
    ended(Loop(), "MemoryError..no room")


class PerSample(Loop):
    """Gradients of each sample by torch.func, whose tensors take no hooks of ours as others do."""

    def step(self, x, y, index):
        weights = dict(self.model.named_parameters())

        def loss(weights, one, target):
            outputs = torch.func.functional_call(self.model, weights, one[None])
            return F.cross_entropy(outputs, target[None])

        each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")
        each(weights, x, y)
        return self.model[0].weight.square().sum()


@pytest.mark.parametrize("head", [None, "3"])
def test_gradients_of_functions_do_not_break(head):
    with pytest.warns(UserWarning, match="recording of the trajectory ended after 0 epochs"):
        run(PerSample(head=head), 2)


def test_copies_of_the_model_are_not_recorded(tmp_path):
    """As averages of weights have it, and files that hold whole models."""
    loop = Loop()
    loop.epoch()
    copies = [deepcopy(loop.model), AveragedModel(loop.model)]
    torch.save(loop.model, tmp_path / "model.pt")
    copies.append(torch.load(tmp_path / "model.pt", weights_only=False))
    step = loop.step

    def with_copies(x, y, index):
        for copy in copies:
            F.cross_entropy(copy(x), y).backward()
        return step(x, y, index)

    loop.step = with_copies
    assert run(loop, 2).is_right()
    assert loop.model[3]._forward_hooks


def test_a_second_run_begins_anew_even_after_a_recording_that_ended():
    loop = Twice()
    ended(loop, "twice")
    again = Loop(loop.model, recorded=False)
    loop.recorder.reset()
    again.recorder, again.loader, again.sampler = loop.recorder, loop.loader, loop.sampler
    assert run(again).is_right()
    again.recorder.reset()
    assert len(again.found) == 0
    again.truth = Truth(60)
    assert run(again, 2).is_right()
    assert sum(len(m._forward_hooks) for m in again.model) == 1
    again.recorder.remove()
    assert sum(len(m._forward_hooks) for m in again.model) == 0


def test_the_file_is_written_after_every_epoch_in_one_piece(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "prunesampler.train.trajectory.write_atomically",
        lambda path, data: written.append((path, Trajectory.from_bytes(data))),
    )
    loop = run(Loop(path=tmp_path / "new" / "run.safetensors"))
    assert [len(found) for _, found in written] == [1, 2, 3]
    assert {path for path, _ in written} == {tmp_path / "new" / "run.safetensors"}
    assert torch.equal(written[-1][1].errors, loop.found)


def test_a_disk_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    loop = Loop(path=tmp_path / "file" / "run.safetensors")
    with pytest.warns(UserWarning, match="could not be written"):
        run(loop)
    assert loop.is_right()


def resumed(loop, state, *, n=60, path=None, loader=DataLoader, **options):
    """A new process: everything is made anew, and the state comes from a file."""
    again = Loop(loop.model, n=n, path=path, loader=loader, **options)
    pruner = TrajectoryPruner(again.recorder, budget=Budget(fraction=0.3), progress=False)
    pruning = PruningCallback(again.sampler, pruner, warmup_epochs=9, refresh_every=1)
    pruning.load_state_dict(unpack_state(pack_state(state)))
    return again, pruning


@pytest.mark.parametrize("file", [False, True])
def test_resuming_after_an_epoch(file, tmp_path):
    path = tmp_path / "run.safetensors" if file else None
    loop = Loop(path=path)
    pruner = TrajectoryPruner(loop.recorder, budget=Budget(fraction=0.3), progress=False)
    pruning = PruningCallback(loop.sampler, pruner, warmup_epochs=9, refresh_every=1)
    for epoch in range(2):
        loop.epoch(end=False)
        pruning.on_epoch_end(epoch, loop.model)
    state = pruning.state_dict()
    again, pruning = resumed(loop, state, path=path)
    again.truth.rows = loop.truth.rows
    again.epoch(end=False)
    pruning.on_epoch_end(2, again.model)
    assert again.is_right()
    if file:
        assert torch.equal(Trajectory.load(path).errors, again.found)
        with pytest.raises(ValueError, match="in a file of its own, run.safetensors; give the"):
            resumed(loop, state)
        with pytest.raises(ValueError, match="give the recorder the path="):
            resumed(loop, state, path=tmp_path / "other")
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match="run.safetensors: not a whole file"):
            resumed(loop, state, path=path)


@pytest.mark.parametrize(
    ("loader", "workers"), [(DataLoader, 0), (StatefulDataLoader, 0), (StatefulDataLoader, 2)]
)
def test_the_rest_of_an_epoch_after_resuming_within_is_not_recorded(loader, workers):
    loop = Loop(loader=loader, num_workers=workers)
    pruner = TrajectoryPruner(loop.recorder, budget=Budget(fraction=0.3), progress=False)
    pruning = PruningCallback(loop.sampler, pruner, warmup_epochs=9, refresh_every=1)
    loop.epoch(end=False)
    pruning.on_epoch_end(0, loop.model)
    loop.truth.begin()
    stateful = None
    for k, (x, y, index) in enumerate(loop.loader):
        loop.step(x, y, index).backward()
        if k == 2:
            stateful = loop.loader.state_dict() if loader is StatefulDataLoader else None
            state = pruning.state_dict()
            break
    again, pruning = resumed(loop, state, loader=loader, num_workers=workers)
    if stateful is not None:
        again.loader.load_state_dict(stateful)
    again.truth.rows = [loop.truth.rows[0], torch.full((60,), float("nan"))]
    again.model.train()
    seen = 0
    for k, (x, y, _) in enumerate(again.loader):
        if stateful is None and k < 3:
            continue
        seen += len(x)
        F.cross_entropy(again.model(x), y).backward()
    assert seen == 60 - 24
    pruning.on_epoch_end(1, again.model)
    again.epoch(end=False)
    pruning.on_epoch_end(2, again.model)
    assert again.is_right()


def test_the_callback_and_the_loop_may_both_tell_of_an_epoch_s_end():
    loop = Loop()
    pruner = TrajectoryPruner(loop.recorder, budget=Budget(fraction=0.3), progress=False)
    pruning = PruningCallback(loop.sampler, pruner, warmup_epochs=9, refresh_every=1)
    for epoch in range(3):
        loop.epoch()
        pruning.on_epoch_end(epoch, loop.model)
    assert loop.is_right()


def test_a_recorder_that_joins_late():
    loop = Loop()
    loop.epoch(end=False)
    loop.recorder.on_epoch_end(4)
    assert len(loop.found) == 5
    assert loop.found[:4].isnan().all()


def test_the_headroom_of_the_last_epoch():
    loop = Loop()
    assert loop.recorder.last_headroom is None
    run(loop, 2)
    assert loop.recorder.last_headroom == loop.recorder.trajectory.headrooms()[-1]
    loop.step = lambda x, y, index: F.cross_entropy(loop.model(x) + loop.model(x), y)
    with pytest.warns(UserWarning, match="ended after 2"):
        run(loop, 1)
    assert loop.recorder.last_headroom is None


def test_wrong_arguments():
    data = indexed()
    sampler = InfluencePrunedSampler(data)
    loader, model = DataLoader(data, 8, sampler=sampler), network()
    with pytest.raises(ValueError, match="draws from a RandomSampler"):
        TrajectoryRecorder(sampler, DataLoader(data, 8, shuffle=True), model)
    with pytest.raises(ValueError, match=r"no linear layer to record \(head='body'\); it has"):
        TrajectoryRecorder(sampler, loader, model, head="body")
    with pytest.raises(ValueError, match="no linear layer to record"):
        TrajectoryRecorder(sampler, loader, nn.ReLU())
    with pytest.raises(ValueError, match="both the loader and the model"):
        TrajectoryRecorder(sampler, loader)


def test_tokens_of_texts():
    """A sample's error is that of all its tokens together, without those that are ignored."""
    torch.manual_seed(0)
    words = torch.randint(0, 9, (40, 5))
    targets = torch.where(torch.rand(40, 5) < 0.3, -100, words % 4)
    sampler = InfluencePrunedSampler(words)
    loader = DataLoader(list(zip(words, targets, range(40), strict=True)), 8, sampler=sampler)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4))
    recorder = TrajectoryRecorder(sampler, loader, model)
    truth = torch.zeros(1, 40)
    for x, y, index in loader:
        outputs = model(x)
        F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="sum").div(7).backward()
        each = distances(outputs, y.clamp(min=0)) * (y >= 0)
        truth[0, index] = each.norm(dim=1)
    recorder.on_epoch_end()
    found = recorder.trajectory.errors
    assert recorder.trajectory.exact
    ratio = found / truth  # up to one factor: how many tokens the loss was divided by is not known
    assert float(ratio.std() / ratio.mean()) < 2e-3


def test_a_batch_that_is_skipped_while_workers_are_ahead():
    """Which one was skipped, nobody can tell: the epoch is left out, and the next is recorded."""
    loop = Loop(n=64, num_workers=2, prefetch_factor=8)
    loop.model.train()
    loop.truth.begin()
    for k, (x, y, index) in enumerate(loop.loader):
        if k:
            loop.step(x, y, index).backward()
    with pytest.warns(UserWarning, match="errors of this epoch are left out: 1 batches"):
        loop.recorder.on_epoch_end()
    assert loop.found.isnan().all()
    loop.epoch()
    assert not loop.found[1].isnan().any()
    loop.truth.rows[0] = torch.full((64,), float("nan"))
    assert loop.is_right()


def test_single_samples_of_a_loss_without_scale_end_the_recording():
    loop = Loop(batch_size=1)
    loop.step = lambda x, y, index: (loop.model(x).square().sum(1) - y).square().mean()
    with pytest.warns(UserWarning, match="with one sample in a batch, and a loss that is no cross"):
        loop.epoch()
    assert loop.recorder.ended


def test_a_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    loop = Loop(path=path)
    pruner = TrajectoryPruner(loop.recorder, budget=Budget(fraction=0.3), progress=False)
    pruning = PruningCallback(loop.sampler, pruner, warmup_epochs=9, refresh_every=1)
    for epoch in range(2):
        loop.epoch(end=False)
        pruning.on_epoch_end(epoch, loop.model)
    state = pruning.state_dict()
    loop.epoch(end=False)
    pruning.on_epoch_end(2, loop.model)
    assert len(resumed(loop, state, path=path)[0].found) == 2  # the file has gone on since
    other = run(Loop(path=path, sampler={"seed": 5}), 3)
    assert len(other.found) == 3
    with pytest.raises(ValueError, match="the trajectory of another run than this state"):
        resumed(loop, state, path=path)
    run(Loop(path=path, sampler={"seed": 5}), 1)
    with pytest.raises(ValueError, match="has 1 epochs, but 2 are needed"):
        resumed(loop, state, path=path)

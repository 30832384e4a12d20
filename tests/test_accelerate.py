"""Under accelerate, what the plan said is what happens."""

from itertools import chain
from pathlib import Path

import pytest
from conftest import Jobs
from html_checks import checked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow
EVERYWHERE = ["modes", "middle", "redrawn"]
job = Jobs("accelerate_jobs.py", {1: [*EVERYWHERE, "tracked"], 2: [*EVERYWHERE, "tracked"]})


def flat(batches):
    return list(chain.from_iterable(batches))


@pytest.mark.parametrize("processes", [1, 2])
def test_every_mode_trains_on_the_kept_set_for_as_long_as_planned(processes):
    ranks = job("modes", processes)
    for name in ranks[0]["found"]:
        rows = [rank["found"][name] for rank in ranks]
        kept, drop_last = rows[0]["kept"], name.endswith("True")
        assert len(kept) == 64
        for epoch, expected in enumerate([range(110), kept, kept, kept]):
            drawn = [flat(row["batches"][epoch]) for row in rows]
            together = set().union(*drawn)
            assert together <= set(expected), name
            assert len(expected) - len(together) < (8 * processes if drop_last else 1), name
            assert sum(map(len, drawn)) - len(together) < 8 * processes, name
            assert len({len(row["batches"][epoch]) for row in rows}) == 1, name
            if epoch and "uneven" not in name:
                assert sum(map(len, drawn)) == 64, name
        for row in rows:
            assert row["steps"] == row["planned"], name
            assert row["lr"] == pytest.approx(0, abs=1e-9), name
            assert row["kept"] == kept


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_stopped_within_an_epoch_goes_on_there(processes):
    for rank in job("middle", processes):
        assert rank["default"] == rank["stateful"] == rank["whole"]
        assert rank["between, 0"] == rank["between, 2"] == rank["whole"]
        assert rank["default lr"] == rank["stateful lr"] == pytest.approx(0, abs=1e-9)


def test_redraws_are_the_same_on_all_ranks_and_after_resuming():
    for processes in (1, 2):
        ranks = job("redrawn", processes)
        kept = ranks[0]["kept"]
        assert all(rank["kept"] == kept for rank in ranks)
        assert all(rank["again"] == kept[2:] for rank in ranks)
        for k in range(3):
            assert set().union(*kept[k : k + 3]) == set(range(107))


def test_trackers_receive_the_figures():
    (found,) = job("tracked", 1)
    events = EventAccumulator(found["folder"])
    events.Reload()
    names = {
        "kept", "shift", "newton_shift", "random_shift", "random_newton_shift", "seconds",
        "headroom",
    }  # fmt: skip
    assert set(events.Tags()["scalars"]) == {f"pruning/{name}" for name in names}
    (kept,), (shift,) = events.Scalars("pruning/kept"), events.Scalars("pruning/shift")
    assert (kept.step, kept.value) == (14, 66)
    assert shift.value == pytest.approx(found["shift"], rel=1e-6)
    (path,) = events.Tensors("pruning/report/text_summary")
    assert [path.tensor_proto.string_val[0].decode()] == found["pages"]


def test_pages_change_nothing_and_are_written_once():
    for processes in (1, 2):
        ranks = job("tracked", processes)
        for rank in ranks:
            assert rank["kept"] == rank["plain"] == ranks[0]["kept"]
            assert [Path(page).name for page in rank["pages"]] == ["epoch-0000.html"]
        html = Path(ranks[0]["pages"][0]).read_text()
        assert "Kept share per class" in checked(html).text

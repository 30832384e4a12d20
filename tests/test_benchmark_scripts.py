"""The scripts of the accuracy benchmarks run, and their results are whole, not mixed, and well reported."""

import json
from statistics import pvariance
from types import SimpleNamespace

import pytest
import search
import time_to_accuracy
import torch
from accuracy_report import cost_of, over_all, priced, times
from accuracy_report import tables as accuracy_tables
from conftest import ROOT, run_python
from data import Images, digits
from fast import Plan, Views
from PIL import Image
from pools_report import accuracies as pool_accuracies
from results import Results, markdown, points, read, spread
from safetensors.torch import save_file
from scipy.stats import spearmanr
from search import agreement, averaged, regret
from setting import load_all
from spoiled import POOLS
from time_report import at_equal_seconds, seconds_to
from torch.utils.data import TensorDataset

pytestmark = pytest.mark.slow
BENCHMARKS = ROOT / "examples" / "benchmarks"


def test_results_survive_a_cut_and_refuse_other_settings(tmp_path):
    path = tmp_path / "r.jsonl"
    jobs = [{"seed": seed} for seed in range(3)]
    done = []

    def work(job):
        done.append(job["seed"])
        return {"accuracy": 0.5}

    results = Results(path, {"lr": 0.1})
    results.run([*jobs[:2], jobs[0]], work, None)
    path.write_text(path.read_text()[:-20])  # the last line was being written
    Results(path, {"lr": 0.1}).run(jobs, work, None)
    assert done == [0, 1, 1, 2]
    assert [row["seed"] for row in read(path)] == [0, 1, 2]
    Results(path, {"lr": 0.1}).run([{"seed": 9}], work, minutes=0)
    assert len(read(path)) == 3
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"holds runs of other settings: .*0\.1.*--output"):
        Results(path, {"lr": 0.2}).run(jobs, work, None)
    assert path.read_bytes() == before
    Results(path, {"lr": 0.2}).run(jobs, work, minutes=0)  # only looks
    (tmp_path / "notes.txt").write_text("my notes\n")
    with pytest.raises(SystemExit, match="is not a file of results"):
        Results(tmp_path / "notes.txt", {"lr": 0.1}).run(jobs, work, None)


def row(method, fraction, seed, accuracy, seconds=10.0, choosing=0.0, samples=100):
    return {"method": method, "fraction": fraction, "seed": seed, "accuracy": accuracy,
            "seconds": seconds, "choosing_seconds": choosing, "samples": samples}  # fmt: skip


def test_differences_are_between_runs_of_the_same_seed():
    runs = [row("m", 0.4, 1, 0.6), row("m", 0.4, 0, 0.5), row("m", 0.4, 2, 0.9)]
    others = [row("o", 0.4, 0, 0.4), row("o", 0.4, 1, 0.3)]
    assert points(runs, others) == pytest.approx([30, 10])
    more = {0.4: runs, 0.2: [row("m", 0.2, 0, 0.7), row("m", 0.2, 1, 0.7)]}
    beside = {0.4: others, 0.2: [row("o", 0.2, 1, 0.6), row("o", 0.2, 0, 0.5)], 0.3: []}
    # Means of 20 and 15; variances of the means 10 squared and 5 squared.
    assert over_all(more, beside, [0.2, 0.4]) == "+17.50 ± 5.59"
    assert over_all({**more, 0.3: []}, beside, [0.2, 0.3, 0.4]) == ""
    assert spread([1.0, 2.0, 3.0]) == "2.0 ± 0.6"


def test_times_are_read_off_the_line_between_the_fractions():
    line = [(3.0, 0.5), (7.0, 0.7), (10.0, 0.8)]
    assert cost_of(0.4, line) == 3.0
    assert cost_of(0.6, line) == pytest.approx(5.0)
    assert cost_of(0.79, line) == pytest.approx(9.7)
    assert cost_of(0.81, line) == 10.0
    rows = [row("all data", 0.0, 0, 0.8), row("m", 0.4, 0, 0.7, 7.0, 2.0, samples=50)]
    by = priced([*rows, row("o", 0.4, 0, 0.7, 30.0, samples=100)])
    assert by["all data"][0.0][0]["seconds"] == pytest.approx(10.0)
    assert by["o"][0.4][0]["seconds"] == pytest.approx(10.0)  # it had a slow hour
    assert by["m"][0.4][0]["seconds"] == pytest.approx(7.0)


def run(name, folder, *options):
    output = folder / f"{name}.jsonl"
    printed = run_python(BENCHMARKS / f"{name}.py", "--output", output, *options)
    return printed, [json.loads(line) for line in output.read_text().splitlines() if line]


def check_picture(path):
    with Image.open(path) as picture:
        assert picture.size[0] > 500


def test_accuracy_runs_and_goes_on(tmp_path):
    options = [
        "--epochs=6",
        "--warmup-epochs=2",
        "--train-size=400",
        "--fractions",
        "0.4",
        "--plot",
    ]
    options += [tmp_path / "a.png", "--methods", "all data", "fewer epochs", "random", "influence"]
    printed, rows = run("accuracy", tmp_path, *options, "--seeds", "0")
    assert [row["job"]["method"] for row in rows] == options[-4:]
    assert len({row["result"]["steps"] for row in rows[1:]}) == 1
    assert rows[0]["result"]["steps"] > rows[1]["result"]["steps"]
    assert rows[3]["result"]["choosing_seconds"] > 0
    assert "40% pruned" in printed
    again = run("accuracy", tmp_path, *options, "--seeds", "0", "1")[1]
    assert again[:4] == rows
    assert len(again) == 8
    check_picture(tmp_path / "a.png")
    with pytest.raises(AssertionError, match="holds runs of other settings"):
        run("accuracy", tmp_path, *options, "--lr=0.2")


def test_predictions_come_true_for_a_convex_head(tmp_path):
    options = ["--epochs=3", "--fractions", "0.5", "--seeds", "0", "--plot", tmp_path / "c.png"]
    options += ["--head-fractions", "0.1", "0.3", "0.5", "0.7"]
    printed, rows = run("consistency", tmp_path, *options)
    convex = [(row["job"]["set"], row["result"]) for row in rows if row["job"]["model"] == "convex"]
    for name, row in convex:
        if name in ("influence", "random"):
            assert row["shift"] == pytest.approx(row["predicted_shift"], rel=0.25)
    shifts = [(row["predicted_shift"], row["shift"]) for _, row in convex]
    assert spearmanr(*zip(*shifts, strict=True))[0] > 0.9
    assert "convex head" in printed
    assert {row["job"]["model"] for row in rows} == {"convex", "deep"}
    check_picture(tmp_path / "c.png")


def test_sets_are_files_that_other_networks_train_on(tmp_path):
    options = ["--epochs=2", "--train-size=300", "--seeds", "0", "--targets", "plain"]
    options += ["--sets", tmp_path / "sets"]
    rows = run("transfer", tmp_path, *options)[1]
    assert [row["job"]["set"] for row in rows] == ["fewer epochs", "random", "influence", "EL2N"]
    names = {path.name for path in (tmp_path / "sets").iterdir()}
    assert names == {"tiny-influence-0.4-0.safetensors", "tiny-EL2N-0.4-0.safetensors"}
    assert rows[2]["result"]["samples"] == 2 * 128
    with pytest.raises(AssertionError, match=r"keeps 180 of 300 samples, not 120 of 200.*--sets"):
        run(
            "transfer", tmp_path, *options, "--train-size=200", "--output", tmp_path / "other.jsonl"
        )


def test_pools_run_on_digits(tmp_path):
    chosen = ["--pools", "junk 50 %", "near copies 30 %", "--seeds", "0"]
    chosen += [
        "--methods",
        "all data",
        "truth known",
        "Target",
        "audit, off-target",
        "audit, copies",
    ]
    printed, rows = run("pools", tmp_path, *chosen)
    made = {(row["job"]["pool"], row["job"]["method"]): row["result"] for row in rows}
    junk = {name: result for (pool, name), result in made.items() if pool == "junk 50 %"}
    assert junk["all data"]["kept_bad"] == 0.5
    assert junk["truth known"]["kept_bad"] == 0
    assert junk["truth known"]["precision"] == junk["truth known"]["recall"] == 1
    assert junk["Target"]["dropped"] == 0.5
    assert max(junk["Target"]["kept_bad"], junk["audit, off-target"]["kept_bad"]) < 0.25
    assert junk["Target"]["accuracy"] > junk["all data"]["accuracy"] + 0.05
    assert made["near copies 30 %", "audit, copies"]["recall"] > 0.9
    assert "audit, off-target" in printed


def test_fine_tuning_runs(tmp_path):
    options = ["--epochs=3", "--warmup-epochs=1", "--train-size=300", "--seeds", "0"]
    small = ["--fractions", "0.5", "--backbone-epochs=2", "--plot", tmp_path / "f.png"]
    rows = run("finetuning", tmp_path, *options, *small)[1]
    frozen = [r["result"]["accuracy"] for r in rows if r["job"]["layers"] == "frozen"]
    assert len(frozen) == 4
    assert min(frozen) > 0.5  # of five classes
    check_picture(tmp_path / "f.png")


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        ("imagefolder", r"must hold train/CLASS/\*.jpg.*downloads CIFAR-10"),
        ("cifar10", r"downloading it failed.*cifar-10-python.tar.gz"),
    ],
)
def test_missing_images_say_what_to_do(dataset, text, tmp_path):
    folder = tmp_path / "none"
    folder.write_text("a file: nothing can be downloaded into it")
    with pytest.raises(SystemExit, match=text):
        load_all(SimpleNamespace(dataset=dataset, data_dir=folder))


def test_tables_show_only_methods_that_ran():
    rows = [row("random", 0.4, 0, 0.5), row("fewer epochs", 0.4, 0, 0.6)]
    (table,) = accuracy_tables(rows)
    assert [line.split("|")[1].strip() for line in markdown(table).splitlines()[2:]] == [
        "fewer epochs",
        "random",
    ]


def test_times_have_the_error_of_leaving_a_seed_out():
    rows = [row("all data", 0.0, seed, 0.80) for seed in range(3)]
    rows += [row("m", 0.4, seed, accuracy, 5.0, samples=50)
             for seed, accuracy in enumerate((0.70, 0.75, 0.77))]  # fmt: skip
    cell = next(line for line in markdown(times(rows)).splitlines() if "| m |" in line)
    # The line to 0.795 from the mean accuracy a at half the cost: 0.5 + 0.5 (0.795 - a) / (0.80 - a).
    means = [(0.75 + 0.77) / 2, (0.70 + 0.77) / 2, (0.70 + 0.75) / 2]
    shares = [50 + 50 * (0.795 - a) / (0.80 - a) for a in means]
    error = (2 * pvariance(shares)) ** 0.5
    assert cell.split("|")[2].strip() == f"96 ± {error:.0f}"


def test_a_missing_baseline_leaves_its_column_empty():
    same = {"pool": "p", "kept_bad": 0.2, "dropped": 0.4, "precision": None, "recall": None}
    rows = [
        {**row(method, 0.4, 0, accuracy), **same}
        for method, accuracy in (("all data", 0.5), ("Target", 0.6))
    ]
    lines = markdown(pool_accuracies(rows)).splitlines()
    cells = [cell.strip() for cell in lines[-1].split("|")[1:-1]]
    assert cells[1:6] == ["Target", "1", "60.0", "+10.0", ""]
    assert cells[6:10] == ["20.0", "40.0", "", ""]


def test_the_fast_trainer_takes_the_steps_of_its_plan():
    own = Plan(12, 0.1, by="own", keep=0.7, last=1)
    epochs = own.epochs_of(50_000)
    assert epochs[0] == epochs[-1] == (False, 100)
    assert epochs[1:-1] == [(True, 70)] * 14 + [(True, 20)]
    assert sum(steps for _, steps in epochs) == 1200
    assert Plan(3, 0.1).epochs_of(1347) == [(False, 2)] * 3
    assert Plan(12, 0.1, by="proxy", keep=0.5).epochs_of(50_000) == [(True, 50)] * 24


def test_views_are_mirrored_at_every_second_visit():
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    x[..., :4] = 255
    data = TensorDataset(x, torch.arange(4))
    views, sides = Views(Images(data, data, 4, padding=2, mirrored=True)), []
    for picked in ([0, 1, 2, 3], [0, 2], [0, 2], [0, 1, 2, 3]):
        made, classes = views.of(torch.tensor(picked))
        assert made.shape == (len(picked), 1, 8, 8)
        assert classes.tolist() == picked
        sides.append((made[:, 0, 4, 0] == 0).tolist())
    first, second, third, last = sides
    assert second == [not first[0], not first[2]]
    assert third == [first[0], first[2]]
    assert last == [not side for side in first]


def test_equal_seconds_are_on_the_line_between_two_lengths():
    def run(row, total, accuracy):
        return {"row": row, "seed": 0, "length": total, "total": total, "accuracy": accuracy}

    rival = [run("all data", 100.0, 0.8), run("all data, 4 times as long", 400.0, 0.9)]
    rival += [run("all data, mirrored by chance", 200.0, 0.3)]  # is no length
    assert at_equal_seconds(run("own", 200.0, 0.87), rival) == (pytest.approx(2.0), False)
    assert at_equal_seconds(run("own", 500.0, 0.87), rival) == (pytest.approx(-3.0), True)
    assert at_equal_seconds(run("own", 50.0, 0.87), rival) is None


def test_time_to_accuracy_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    path = tmp_path / "t.json"
    options = ["--json", path, "--epochs=3", "--workers=1", "--seeds", "0"]
    rows = ["all data", "hardest 70 % by a proxy", "hardest 70 % by its own errors"]
    printed = run_python(BENCHMARKS / "time_to_accuracy.py", *options, "--rows", *rows)
    found = json.loads(path.read_text())
    assert {*rows, "proxy"} <= {run["row"] for run in found["runs"]}
    assert len({run["steps"] for run in found["runs"] if run["row"] in rows}) == 1
    assert all(len(run["headrooms"]) == run["epochs"] for run in found["runs"])
    assert all(row in printed for row in rows)
    monkeypatch.setattr("sys.argv", ["", *map(str, options), "--minutes=0"])
    time_to_accuracy.main()
    assert capsys.readouterr().out == printed
    monkeypatch.setattr("sys.argv", ["", *map(str, options), "--epochs=4"])
    with pytest.raises(SystemExit, match="holds runs of other settings"):
        time_to_accuracy.main()
    assert json.loads(path.read_text()) == found


def test_the_time_to_an_accuracy_is_on_the_line_too():
    line = [{"total": 100.0, "accuracy": 0.8}, {"total": 400.0, "accuracy": 0.9}]
    assert seconds_to(0.85, line) == pytest.approx(200)
    assert seconds_to(0.95, line) is None
    assert seconds_to(0.5, line) is None


def test_wrong_labels_in_a_network_run(tmp_path):
    options = ["--output", tmp_path / "m.jsonl", "--epochs=3", "--seeds", "0", "--rates", "1"]
    methods = ["all data", "small loss", "cross-split", "truth known"]
    printed = run_python(BENCHMARKS / "memorising.py", *options, "--methods", *methods)
    assert all(f"| {method} |" in printed for method in methods)
    rows = read(tmp_path / "m.jsonl")
    wrong = {row["method"]: row["kept_bad"] for row in rows}
    assert wrong["truth known"] == 0
    assert wrong["cross-split"] < wrong["all data"]


def test_junk_in_a_network_runs(tmp_path):
    # A file of features has a row for each image, in their order; these are the pixels.
    parts = {}
    for part, held in (("train", digits().train), ("test", digits().test)):
        x, parts[f"{part}_labels"] = held.tensors
        parts[part] = x.flatten(1).half() / 16
    save_file(parts, tmp_path / "features.safetensors")
    options = ["--pool=junk", "--share=0.5", "--epochs=9", "--seeds", "0", "--rates", "1"]
    options += ["--output", tmp_path / "m.jsonl", "--features", tmp_path / "features.safetensors"]
    judged = ["Target", "audit, off-target", "nearest sure of the label"]
    judged += ["Target, pretrained", "audit, pretrained", "nearest, pretrained"]
    methods = ["all data", *judged, "truth known"]
    printed = run_python(BENCHMARKS / "memorising.py", *options, "--methods", *methods)
    assert all(f"| {method} |" in printed for method in methods)
    junk = {row["method"]: row["kept_bad"] for row in read(tmp_path / "m.jsonl")}
    assert junk["truth known"] == 0
    assert max(junk[method] for method in judged) < junk["all data"] / 2


def test_the_audit_of_a_whole_pool_runs(tmp_path):
    parts = {}
    for part, held, count in (("train", digits().train, 600), ("test", digits().test, 60)):
        x, y = (tensor[:count] for tensor in held.tensors)
        order = y.argsort(stable=True)  # as a folder for each class has them
        parts[part], parts[f"{part}_labels"] = x[order].flatten(1).half() / 16, y[order]
        for number, k in enumerate(order.tolist()):
            path = tmp_path / part / f"kind {int(y[k])}" / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[k, 0].numpy()).convert("RGB").save(path)
    save_file(parts, tmp_path / "features.safetensors")
    options = ["--images", tmp_path, "--features", tmp_path / "features.safetensors"]
    printed = run_python(BENCHMARKS / "whole_pool.py", *options, "--output", tmp_path / "pages")
    assert json.loads(printed.splitlines()[-1])["samples"] == 600
    assert "| 600 samples | found | share | |" in printed
    assert "kind 3" in (tmp_path / "pages" / "selection.html").read_text()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_pool_with_junk_is_what_it_says(share):
    images = digits()
    pool = POOLS["junk"](images, share, seed=3)
    x, y = pool.images.train.tensors
    assert pool.images.classes == 5
    assert set(y.tolist()) == set(pool.images.test.tensors[1].tolist()) == set(range(5))
    assert float(pool.bad[: -len(pool.wanted)].double().mean()) == pytest.approx(share, abs=0.01)
    assert not pool.bad[pool.wanted].any()
    # Every image has the class that it says, or is bad.
    place = {image.numpy().tobytes(): k for k, image in enumerate(images.train.tensors[0])}
    truth = images.train.tensors[1][[place[image.numpy().tobytes()] for image in x]]
    classes = [set(truth[(y == k) & ~pool.bad].tolist()) for k in range(5)]
    assert all(len(found) == 1 for found in classes)
    assert not set.union(*classes) & set(truth[pool.bad].tolist())
    assert len({image.numpy().tobytes() for image in x}) == len(x)
    assert torch.equal(images.train.tensors[0][pool.source], x)


def test_the_cost_of_an_audit_is_measured():
    printed = run_python(
        BENCHMARKS / "audit_cost.py", "--samples=600", "--features=20", "--pixels=32"
    )
    found = json.loads(printed.splitlines()[-1])
    assert (found["samples"], found["features"]) == (600, 20)
    assert found["audit_seconds"] >= 0
    assert found["forward_seconds"] > 0


def test_regret_is_that_of_the_setting_that_looks_best():
    truth = averaged({0: [{"test": 0.6}, {"test": 0.9}], 1: [{"test": 0.8}, {"test": 0.7}]})
    assert truth == pytest.approx([0.7, 0.8])
    assert averaged({0: [{"test": 0.6}], 1: [{"test": 0.8}]}, without=0) == [0.8]
    assert regret([0.9, 0.5], truth) == pytest.approx(10)
    assert regret([0.9, 0.9], truth) == pytest.approx(5)
    assert agreement([0.1, 0.2], truth) == pytest.approx(1)
    assert agreement([0.5, 0.5], truth) == 0.0


def test_search_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    path = tmp_path / "s.jsonl"
    options = ["--json", path, "--epochs=1", "--choosing-epochs=1", "--settings=2"]
    printed = run_python(BENCHMARKS / "search.py", *options, "--seeds", "0", "1")
    rows = read(path)
    assert len(rows) == 2 * 2 * 13
    assert {row["row"] for row in rows if row["test"] is not None} == {"all samples"}
    same = ("influence", "random", "hardest", "all samples, fewer epochs")
    assert {(row["share"], row["steps"]) for row in rows if row["row"] in same} == {
        (0.1, 3), (0.3, 9)
    }  # fmt: skip
    assert all((row["choosing"] > 0) == (row["row"] in ("influence", "hardest")) for row in rows)
    monkeypatch.setattr("sys.argv", ["", *map(str, options), "--minutes=0"])
    search.main()
    assert capsys.readouterr().out == printed

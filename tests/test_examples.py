import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, launch, run_python
from PIL import Image

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
SMALL = ["--epochs=4", "--warmup-epochs=2", "--train-size=300", "--redraw-every=1"]


def train(folder, *options, processes=1):
    arguments = [*SMALL, "--output-dir", folder, *options]
    done = launch(EXAMPLES / "train.py", *arguments, processes=processes)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not warned(done.stderr), done.stderr
    return json.loads((folder / "metrics.json").read_text())["results"]


def warned(errors):
    """The lines of what a script wrote to its standard error that hold a warning."""
    return [line for line in errors.splitlines() if "Warning" in line]


def plain_version(text):
    """The loop without us: new lines out, old lines in."""
    lines = [line for line in text.splitlines() if not line.endswith("# +")]
    return "\n".join(re.sub(r"^(\s*)# - ", r"\1", line) for line in lines)


@pytest.mark.parametrize(
    ("name", "processes", "options", "accuracy"),
    [
        ("custom_loop", 1, [], 85),
        ("ddp_plain", 2, [], 85),
        ("accelerate_cv", 1, ["--epochs=8"], 85),
        ("lightning_digits", 1, [], 85),
        ("transformers_text", 1, ["--lines=600", "--epochs=4"], 40),
    ],
)
def test_scripts_with_and_without_us(name, processes, options, accuracy, tmp_path):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 100
    plain = tmp_path / "plain.py"
    plain.write_text(plain_version(text))
    assert "prunesampler" not in plain.read_text().split('"""')[2]
    for number, path in enumerate((EXAMPLES / f"{name}.py", plain)):
        given = [f"--output-dir={tmp_path / str(number)}"] if options else []
        output = run_python(path, *options, *given, processes=processes)
        (line,) = [line for line in output.splitlines() if line.startswith("test accuracy")]
        assert float(line.split()[2].rstrip("%,")) > accuracy
        assert float(line.split()[-1]) < 1e-5


def test_the_accelerate_script_on_two_processes_and_resumed(tmp_path):
    options = ["--epochs=8", f"--output-dir={tmp_path / 'runs'}", "--batch-size=32"]
    first = run_python(EXAMPLES / "accelerate_cv.py", *options, processes=2)
    assert "last learning rate 0.0e+00" in first
    assert [path.name for path in (tmp_path / "runs").glob("epoch-*")] == ["epoch-008"]
    again = run_python(EXAMPLES / "accelerate_cv.py", *options, processes=2)
    assert again.splitlines()[-1] == first.splitlines()[-1]


def test_the_stateful_script_goes_on_at_the_next_batch():
    output = run_python(EXAMPLES / "stateful_resume.py")
    assert "172 losses, the same with and without a stop after 100" in output


def test_the_main_job_compares_with_every_baseline(tmp_path):
    results = train(tmp_path)
    assert list(results) == ["all", "fewer", "random", "redrawn", "influence", "redraw"]
    full, fewer, *others = results.values()
    assert full["samples"] == 4 * 300
    assert fewer["samples"] == 3 * 300
    for pruned in others:
        assert pruned["samples"] == 2 * 300 + 2 * 180
        assert pruned["steps"] == 2 * 5 + 2 * 3
    assert others[-2]["selecting_seconds"] > 0
    assert all(row["seconds"] > 0 and 0.1 < row["test_accuracy"] <= 1 for row in results.values())
    assert (tmp_path / "selection.safetensors").exists()


def test_the_main_job_on_two_processes_with_bf16(tmp_path):
    results = train(tmp_path, "--mixed-precision=bf16", processes=2)
    assert list(results) == ["all", "fewer", "random", "redrawn", "influence", "redraw"]
    for method in ("influence", "redraw"):
        assert results[method]["samples"] == 2 * 300 + 2 * 180
        assert results[method]["steps"] == 2 * 5 + 2 * 3


def test_the_main_job_with_refresh_and_last_epochs_on_all_data(tmp_path):
    results = train(tmp_path, "--only=influence", "--refresh-every=1", "--final-full-epochs=1")
    assert results["influence"]["samples"] == 3 * 300 + 180


def test_image_folders(tmp_path):
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(12):
                picture = draw.integers(0, 99, (10, 12, 3), dtype=np.uint8) + np.uint8(number * 150)
                Image.fromarray(picture).save(folder / f"{index}.png")
    options = ["--dataset=imagefolder", "--data-dir", tmp_path / "images", "--image-size=8"]
    results = train(tmp_path / "out", *options, "--batch-size=8", "--only=influence")
    assert results["influence"]["samples"] == 2 * 24 + 2 * 14


@pytest.mark.parametrize("method", ["all", "influence", "redraw"])
def test_a_killed_main_job_resumes_to_the_same_result(tmp_path, method):
    expected = train(tmp_path / "whole", "--only", method)[method]
    command = [sys.executable, str(EXAMPLES / "train.py"), *SMALL, "--only", method]
    command += ["--output-dir", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "killed" / method
    started = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(folder.glob("epoch-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(random.Random(method).uniform(0, 0.2))
    started.send_signal(signal.SIGKILL)
    started.wait()
    killed = json.loads((tmp_path / "killed" / "metrics.json").read_text())
    assert killed["results"] == {}
    assert list(folder.glob("epoch-*"))

    resumed = train(tmp_path / "killed", "--only", method, "--resume")[method]
    for name in ("test_accuracy", "samples", "steps"):
        assert resumed[name] == expected[name]


def test_one_method_at_a_time_and_no_mixing_of_options(tmp_path):
    train(tmp_path, "--only=all")
    assert list(train(tmp_path, "--only=random")) == ["all", "random"]
    with pytest.raises(AssertionError, match="is of another run"):
        train(tmp_path, "--only=all", "--resume", "--lr=0.5")
    train(tmp_path, "--only=random", "--lr=0.5")
    assert not list((tmp_path / "all").glob("epoch-*"))


def test_a_missing_folder_says_where_to_put_the_images(tmp_path):
    with pytest.raises(AssertionError, match=r"--data-dir must hold train/CLASS/\*.jpg"):
        train(tmp_path, "--dataset=imagefolder", "--data-dir", tmp_path)


def test_known_answers_on_digits():
    output = run_python(EXAMPLES / "benchmarks" / "known_answers.py", "--json", "--singles=20")
    found = json.loads(output)
    assert found["20 single samples"]["median_relative_error"] <= 0.02
    assert found["20 single samples"]["min_cosine"] >= 0.999
    assert found["10 % at random"]["first_order_error"] <= 0.06
    assert found["10 % at random"]["newton_error"] <= 0.02
    assert found["40 % at random"]["first_order_error"] <= 0.12
    assert found["40 % at random"]["newton_error"] <= 0.03
    assert found["40 % selected"]["share_of_random"] <= 0.30
    assert found["40 % selected, 16 components"]["share_of_random"] <= 0.05


def test_a_probe_keeps_its_head_and_its_test_loss():
    rows = json.loads(run_python(EXAMPLES / "linear_probe.py", "--json", "--draws=1"))
    assert [row["kept"] for row in rows] == [1212, 808, 404, 135]
    for row in rows:
        assert row["share_of_random"] < 0.2
        assert row["shift"] <= row["bound"]
        assert row["newton_error"] <= 0.05
    for row in rows[1:]:
        full = row["test_loss_full"]
        assert abs(row["test_loss"] - full) <= 0.5 * abs(row["random_test_loss"] - full)


def test_a_weighted_head_is_that_of_all_samples():
    rows = json.loads(run_python(EXAMPLES / "weighted_head.py", "--json", "--draws=2"))
    far = {name: distance for name, (_, _, distance) in rows.items()}
    assert far["chosen, weighted"] < 1e-4
    assert far["chosen"] > 1e-2
    assert far["random, weighted"] < 0.6 * far["random"]
    assert rows["chosen, weighted"][0] == pytest.approx(rows["all"][0], abs=1e-4)
    assert rows["random"][0] > rows["all"][0] + 0.02


def test_features_are_trained_and_probed(tmp_path):
    path = tmp_path / "features.safetensors"
    run_python(EXAMPLES / "features.py", "--epochs=1", "--width=8", "--output", path)
    options = ["--features", path, "--fractions", "0.4", "--draws=1", "--json"]
    (row,) = json.loads(run_python(EXAMPLES / "linear_probe.py", *options))
    assert row["share_of_random"] < 0.5


def test_the_solvers_benchmark_runs(tmp_path):
    options = ["--repeats=1", "--json", tmp_path / "s.json", "--plot", tmp_path / "s.png"]
    run_python(EXAMPLES / "benchmarks" / "solvers.py", *options, "--largest=500000")
    rows = {
        r["method"]: r["shares"][0]
        for r in json.loads((tmp_path / "s.json").read_text())["results"]
    }
    assert (
        rows["anneal, 0.5M swaps"]
        < 0.1
        < rows["greedy, 20 at a time"]
        < 1
        < rows["top-k by influence norm"]
    )
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size[0] > 500


def test_the_overhead_benchmark_runs():
    options = ["--images=20", "--samples=600", "--repeats=1", "--json"]
    found = json.loads(run_python(EXAMPLES / "benchmarks" / "overhead.py", *options))
    assert all(value >= 0 for value in found.values())


def test_the_engine_benchmark_runs(tmp_path):
    sizes = ["10,60,900", "300,40,1200"]
    script = EXAMPLES / "benchmarks" / "engine.py"
    run_python(script, "--cases", *sizes, "--default-only", "--json", tmp_path / "e.json")
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    ours = [row for row in rows if row["way"] == "default"]
    assert [row["kind"] for row in ours] == ["ExactFactorised", "MatrixFree"]
    assert all(0 < row["parameters"] < 1 for row in ours)
    assert all(row["residual"] <= 1e-3 for row in ours)


def test_the_iteration_benchmark_runs():
    options = ["--samples=5000", "--repeats=1", "--json"]
    output = run_python(EXAMPLES / "benchmarks" / "iteration.py", *options)
    found = json.loads(output[output.index("{") :])
    assert all(value > 0 for value in found.values())
    # The kept indices and a mask over all of them, and nothing else of size.
    assert found["restrict_mib"] <= found["kept_mib"] + 1.2 * 5000 / 2**20


def cells(text, start):
    """The columns of the first row of a printed table that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_proxy_shows_a_large_network_what_is_hard(tmp_path):
    path = tmp_path / "trajectory"
    text = run_python(EXAMPLES / "proxy.py", "--epochs=2", "--proxy-epochs=2", "--path", path)
    assert path.exists()
    assert "hardest by the small network" in text
    assert "hardest by its own errors" in text


def test_an_audit_cleans_a_pool(tmp_path):
    text = run_python(EXAMPLES / "audit.py", "--path", tmp_path / "scores")
    assert int(cells(text, "near copies")[1]) == 60
    accuracies = {
        name: float(cells(text, name)[2].rstrip("%"))
        for name in ("everything", "cleaned", "truth known")
    }
    assert accuracies["cleaned"] > accuracies["everything"]
    assert accuracies["cleaned"] > accuracies["truth known"] - 1
    _, _, precision, recall = cells(text, "suspects and off-target")
    assert float(precision.rstrip("%")) > 80
    assert float(recall.rstrip("%")) > 80


def test_two_halves_find_wrong_labels():
    text = run_python(EXAMPLES / "wrong_labels.py", "--seeds", "0", "--epochs=20")
    assert float(cells(text, "without suspects")[2]) < 8
    assert float(cells(text, "without suspects")[1]) > float(cells(text, "all data ")[1]) + 5


def test_a_long_tail_beside_its_free_rivals():
    text = run_python(EXAMPLES / "long_tail.py", "--seeds", "0", "--epochs=10")
    plain = float(cells(text, "trained on all")[1])
    assert float(cells(text, "last layer anew, equal classes chosen")[1]) > plain - 2
    assert float(cells(text, "logits adjusted")[1]) > plain

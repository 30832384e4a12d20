"""The command line: where it writes to, whatever that is, and what it reads that is no file."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_files import fill, invoke, refused, said
from PIL import Image

from prunesampler import Budget, Selection, Trajectory
from prunesampler.cli import reading
from prunesampler.cli.rows import CHUNK, as_csv, as_indices, as_jsonl

COMMAND = Path(sys.executable).with_name("prunesampler")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file of every kind."""
    folder = tmp_path_factory.mktemp("files")
    fill(folder)
    return folder


@pytest.fixture
def run(files, monkeypatch, tmp_path):
    """Run a command in a folder with a selection and scores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("selection", "scores"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    return invoke


WRITING = [
    ("export", "selection", "--csv"),
    ("report", "selection"),
    ("report", "scores", "--wanted", "selection"),
    ("report", "scores", "--scores", "selection"),
]


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("name", ["selection", "./selection", "link", "hard link"])
def test_a_file_that_is_read_is_not_replaced(run, files, command, name):
    os.symlink("selection", "link")
    os.link("selection", "hard link")
    text = refused(run(*command, "-o", name))
    assert text.endswith("cannot be written: it is one of the files that are read; name another")
    assert Path("selection").read_bytes() == (files / "selection").read_bytes()
    assert os.path.islink("link")


def test_a_pipe_or_device_is_not_replaced_by_a_file(run):
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    before = sorted(os.listdir())
    for name in ("pipe", "link"):
        for command in WRITING[:2]:
            assert f"{name} cannot be written: it is a pipe" in refused(run(*command, "-o", name))
    assert Path("pipe").is_fifo()
    assert sorted(os.listdir()) == before


def test_a_link_stays_one(run):
    Path("kept").write_text("before")
    os.symlink("kept", "link")
    os.symlink("new", "dangling")
    for name, end in (("link", "kept"), ("dangling", "new")):
        said(run("export", "selection", "--indices", "-o", name))
        assert os.readlink(name) == end
        kept = [int(line) for line in Path(end).read_text().splitlines()]
        assert kept == Selection.load("selection").kept.tolist()


def test_links_in_a_circle_are_refused(run):
    os.symlink("a", "b")
    os.symlink("b", "a")
    refused(run("show", "a"))
    refused(run("export", "selection", "--indices", "-o", "a"))
    assert sorted(os.listdir()) == ["a", "b", "scores", "selection"]


@pytest.mark.parametrize("name", ["", "selection/x", "x" * 300])
def test_names_that_no_file_can_have_are_refused(run, name):
    refused(run("report", "scores", "-o", name))
    assert sorted(os.listdir()) == ["scores", "selection"]


def test_what_is_protected_is_not_replaced(run, monkeypatch):
    Path("page.html").write_text("before")
    asked = []

    def denied(path, mode):
        if mode == os.W_OK:
            asked.append(Path(path).name)
        return mode != os.W_OK

    monkeypatch.setattr("prunesampler.cli.writing.os.access", denied)
    for name in ("page.html", "new.html"):
        text = refused(run("report", "scores", "-o", name))
        assert f"{name} cannot be written: it is protected" in text
    assert asked == ["page.html", Path.cwd().name]
    assert Path("page.html").read_text() == "before"


@pytest.mark.parametrize("command", ["show", "audit", "report"])
def test_pipes_and_devices_are_not_waited_for(run, command):
    os.mkfifo("pipe")
    for name in ("pipe", "/dev/zero"):
        assert f"{name}: it is a pipe or a device; write" in refused(run(command, name))


def test_a_file_larger_than_the_memory_is_not_read(run):
    os.truncate("scores", 2**42)
    for command in ("show", "audit", "report"):
        assert "scores: its bytes and tensors take 8.19e+03 GiB" in refused(run(command, "scores"))


def test_a_text_larger_than_the_memory_is_not_made(run, monkeypatch):
    Trajectory(torch.rand(40, 60)).save("trajectory")
    monkeypatch.setattr(reading, "available_bytes", lambda: 20_000)
    text = refused(run("export", "trajectory", "--csv", "-o", "rows.csv"))
    assert "41 columns take" in text
    assert not Path("rows.csv").exists()
    assert len(said(run("export", "trajectory", "--csv")).splitlines()) == 61


def test_rows_come_in_pieces_that_make_the_whole():
    n = 2 * CHUNK + 3
    table = {"index": torch.arange(n), "error": torch.linspace(0, 1, n)}
    pieces = list(as_csv(table))
    assert max(piece.count("\n") for piece in pieces) == CHUNK
    rows = list(csv.DictReader(io.StringIO("".join(pieces))))
    assert [int(row["index"]) for row in rows] == list(range(n))
    errors = torch.tensor([float(row["error"]) for row in rows])
    assert torch.allclose(errors, table["error"], rtol=1e-6)
    assert "".join(as_jsonl(table)).count("\n") == n
    pruned = torch.tensor([3, CHUNK + 1])
    selection = Selection(pruned, n, 0.1, 0.1, None, Budget(count=2))
    kept = [int(line) for line in "".join(as_indices(selection)).splitlines()]
    assert kept == [i for i in range(n) if i not in (3, CHUNK + 1)]


def test_names_that_are_no_text_are_shown(run):
    name = os.fsdecode(b"\xff.html")
    assert said(run("report", "scores", "-o", name)) == "wrote \\udcff.html\n"
    assert os.listdir(b".").count(b"\xff.html") == 1
    os.rename("scores", name)
    assert said(run("show", name)).startswith("\\udcff.html")
    assert refused(run("show", f"no {name}")).startswith("prunesampler: no \\udcff.html: No such")


def test_odd_files_among_images_are_shown_as_such(run):
    for i in range(60):
        path = Path("photos", "ab"[i % 2], f"{i:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 8:
            path.write_text("no image")
        elif i < 16:
            os.mkfifo(path)
        elif i < 24:
            os.symlink("/dev/zero", path)
        elif i < 32:
            os.symlink("nowhere", path)
        else:
            Image.new("RGB", (4, 4)).save(path)
    said(run("report", "selection", "--images", "photos", "-o", "page.html"))
    page = Path("page.html").read_text()
    assert "cannot identify image file" in page
    assert "it is no file" in page


@pytest.mark.parametrize("name", ["empty", "no images", "selection", "nowhere"])
def test_a_folder_without_images_is_refused(run, name):
    Path("empty").mkdir()
    Path("no images/x").mkdir(parents=True)
    refused(run("report", "scores", "--images", name, "-o", "page.html"))
    assert not Path("page.html").exists()


def ran(folder, *arguments, **options):
    """The installed command in a process of its own."""
    options = {"stdout": subprocess.PIPE, **options}
    return subprocess.run(
        [COMMAND, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True, timeout=120, **options
    )


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error_to_tell(tmp_path):
    Trajectory(torch.rand(3, 100_000)).save(tmp_path / "seen")
    with subprocess.Popen(
        [COMMAND, "export", "seen", "--csv"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "index,error_0,error_1,error_2\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line(files):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:
        found = ran(files, "export", "selection", "--csv", stdout=full)
    assert found.returncode == 2
    assert found.stderr == "prunesampler: [Errno 28] No space left on device\n"


@pytest.mark.slow
def test_a_terminal_without_these_letters_shows_their_numbers(files):
    (files / "\xe9").write_bytes((files / "selection").read_bytes())
    found = ran(files, "show", "\xe9", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("\\xe9 ")
    assert found.stdout.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("colours", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_no_colours_where_nobody_wants_them(files, colours):
    assert "\x1b" not in ran(files, "show", "selection", env={**os.environ, **colours}).stdout

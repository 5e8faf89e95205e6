"""Shards, finished results, and files of JSON lines."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lcgcn_jax.data.formats.pts import format_pts
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference import results
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.json_lines import JsonLines
from lcgcn_jax.inference.large_jobs import Shard, is_intact
from lcgcn_jax.inference.sources import InputFile, find_inputs
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.visualize.faces import save_image

SCHEME = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3})


def line(name, faces=()):
    return json.dumps({"image": name, "faces": list(faces)})


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shards_are_disjoint_and_complete(tmp_path, count):
    files = [InputFile(tmp_path / f"{i}.jpg", tmp_path / f"{i}") for i in range(23)]
    parts = [Shard(i, count).select(files[::-1]) for i in range(1, count + 1)]
    assert sorted(str(f.path) for part in parts for f in part) == sorted(str(f.path) for f in files)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(set(Shard(i + 1, count).select(files)) == set(part) for i, part in enumerate(parts))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "-1/4", "1/4/2", "", "1.5/2"])
def test_invalid_shards_are_errors(text):
    with pytest.raises(InputError, match=r"--shard .*: give I/N"):
        Shard.parse(text)


def test_a_single_part_keeps_the_order_of_the_inputs(tmp_path):
    files = [InputFile(tmp_path / name, tmp_path / name) for name in ("b", "a")]
    assert Shard.parse("1/1").select(files) == files
    assert (Shard.parse("1/1").suffix, Shard.parse("2/8").suffix) == ("", "-00002-of-00008")


def test_results_below_an_input_folder_are_not_inputs(tmp_path):
    for name in ("a.jpg", "out/a.png", "out.jpg", "outside/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(file.name) for file in find_inputs([str(tmp_path)], tmp_path / "out").files]
    assert names == ["a", "out", "outside/b"]
    assert len(find_inputs([str(tmp_path / "out")], tmp_path / "out").files) == 1


def write_results(folder):
    """Complete results of an image with one face, in all formats."""
    points = np.arange(6.0).reshape(3, 2)
    face = Face(np.array([0.0, 0, 9, 9]), points, np.ones(3, np.float32), points)
    content = json.dumps(results.describe_image(folder / "a.jpg", 9, 9, [face], SCHEME)) + "\n"
    (folder / "a.json").write_text(content)
    (folder / "a.jsonl").write_text(3 * content)
    (folder / "a.csv").write_text(results.format_csv([face], SCHEME))
    (folder / "a.pts").write_text(format_pts(points))
    save_image(folder / "a.png", np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "pts", "png"])
def test_cut_and_damaged_results_are_not_finished(tmp_path, suffix):
    write_results(tmp_path)
    path = tmp_path / f"a.{suffix}"
    content = path.read_bytes()
    assert is_intact(path, 3)
    if suffix != "png":
        assert not is_intact(path, 4), "of another model"
    for damaged in (b"", content[:-4], content[: len(content) // 2], b"\0" * len(content)):
        path.write_bytes(damaged)
        assert not is_intact(path, 3)
    path.unlink()
    assert not is_intact(path, 3)
    path.mkdir()
    assert not is_intact(path, 3)


def test_lines_are_appended_to_those_of_an_earlier_job(tmp_path):
    path = tmp_path / "out" / "lines.jsonl"
    first = JsonLines(path)
    first.append(line("a"))
    first.close()
    again = JsonLines(path, resume=True)
    again.append(line("b"))
    again.close()
    assert again.finished == {"a"}
    assert path.read_text() == line("a") + "\n" + line("b") + "\n"


@pytest.mark.parametrize(
    "corruption",
    [
        '{"image": "c", "fac',
        line("c"),  # without the end of the line
        "\0" * 50 + "\n",
        line("a") + "\n",
        "\xff\n",
    ],
)
@pytest.mark.parametrize("rest", ["", line("d") + "\n"])
def test_cut_damaged_and_repeated_lines_are_deleted(tmp_path, corruption, rest):
    path = tmp_path / "lines.jsonl"
    before = line("a") + "\n" + line("b") + "\n"
    path.write_text(before + corruption + rest, encoding="latin-1")
    lines = JsonLines(path, resume=True)
    lines.append(line("e"))
    lines.close()
    is_line = corruption.endswith("\n")
    remaining = before + (rest if is_line else "")
    assert path.read_text() == remaining + line("e") + "\n"
    assert lines.finished == {"a", "b", *(["d"] if rest and is_line else [])}


@pytest.mark.parametrize("other", ['{"image": "c"}', "[1]", '{"frame": 0, "faces": []}'])
def test_lines_of_other_content_are_kept(tmp_path, other):
    path = tmp_path / "lines.jsonl"
    content = line("a") + "\n" + other + "\n"
    path.write_text(content)
    with pytest.raises(InputError, match=r"lines\.jsonl: has lines that are not results of images"):
        JsonLines(path, resume=True)
    assert path.read_text() == content


def test_a_new_job_replaces_the_lines_with_its_first_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(line("a") + "\n")
    lines = JsonLines(path, overwrite=True)
    assert path.read_text() == line("a") + "\n"
    lines.append(line("b"))
    lines.close()
    assert path.read_text() == line("b") + "\n"


def test_lines_of_another_process_are_kept(tmp_path):
    first, second = (JsonLines(tmp_path / "lines.jsonl") for _ in range(2))
    first.append(line("a"))
    first.close()
    with pytest.raises(InputError, match="another process has written it; choose another --out"):
        second.append(line("b"))
    assert first.path.read_text() == line("a") + "\n"


def test_full_disk_leaves_no_part_of_a_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = JsonLines(path)
    lines.append(line("a"))
    file = lines._file

    class FullDisk:
        truncate, seek = file.truncate, file.seek
        writes = 0

        def write(self, data):
            self.writes += 1
            if self.writes > 1:
                raise OSError(28, "No space left on device")
            return file.write(data[:3])

    lines._file = FullDisk()
    with pytest.raises(OSError, match="No space left") as error:
        lines.append(line("b"))
    file.close()
    assert error.value.filename == str(path)
    assert path.read_text() == line("a") + "\n"


def test_two_processes_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lcgcn_jax.inference.json_lines import JsonLines\n"
        "lines = JsonLines(Path(sys.argv[1])); lines.append('{}'); print(flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as other:
        other.stdout.readline()
        for resume in (False, True):
            with pytest.raises(InputError, match="another process writes to this file"):
                JsonLines(path, resume=resume).append(line("a"))
        other.stdin.close()
    assert path.read_text() == "{}\n"

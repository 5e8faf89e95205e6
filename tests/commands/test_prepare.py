import json

import cv2
import numpy as np
import PIL.Image
import pytest

from lcgcn_jax.commands.parsing import parse_arguments
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.errors import InputError
from lcgcn_jax.synthetic.dataset import prepare_synthetic


def run(*argv):
    args = parse_arguments(["prepare", *map(str, argv)])
    return args.run(args)


@pytest.fixture
def afw(tmp_path):
    """300W folder with five faces of AFW."""
    folder = tmp_path / "src/afw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(5):
        cv2.imwrite(str(folder / f"{i}_1.jpg"), rng.integers(0, 256, (60, 60, 3), np.uint8))
        points = rng.uniform(15, 45, (68, 2))
        (folder / f"{i}_1.pts").write_text("\n".join(f"{x} {y}" for x, y in points))
    return folder.parent


def test_counts_are_printed(afw, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("300w", "--src", afw, "--out", out) == 0
    assert capsys.readouterr().out.splitlines() == [
        "300w: 5 faces: afw 5",
        "absent: helen/train, lfpw/train, helen/test, lfpw/test, ibug, 300W/indoor, 300W/outdoor",
        f"{out}: train 4, validation 1",
    ]
    assert open_dataset(out).num_faces == {"train": 4, "validation": 1}


def test_notes_are_printed_once_and_written_to_the_report(afw, tmp_path, capsys):
    (afw / "helen.zip").write_bytes(b"")
    text = (afw / "afw/0_1.pts").read_text().splitlines()
    (afw / "afw/0_1.pts").write_text("\n".join(["0 0", "-1 -1", *text[2:]]))
    assert run("300w", "--src", afw, "--out", tmp_path / "out") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: 2 points at (0, 0) or (-1, -1) treated as missing, in 1 face, such as afw/0_1.jpg",
        "note: not read, still packed: helen.zip; unpack to add absent subsets",
    ]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [f"note: {note}" for note in report["notes"]] == notes


def test_lfpw_overlap_is_skipped_by_default(afw, tmp_path, capsys):
    (afw / "afw").rename(afw / "trainset")
    (afw / "lfpw").mkdir()
    (afw / "trainset").rename(afw / "lfpw/trainset")
    for suffix in ("jpg", "pts"):
        folder = afw / "lfpw/trainset"
        (folder / f"0_1.{suffix}").rename(folder / f"image_0215.{suffix}")
    assert run("300w", "--src", afw, "--out", tmp_path / "out") == 0
    output = capsys.readouterr().out
    assert "300w: 4 faces: lfpw/train 4" in output
    assert "note: 1 LFPW training images are left out" in output
    assert run("300w", "--src", afw, "--out", tmp_path / "all", "--keep-lfpw-overlap") == 0
    output = capsys.readouterr().out
    assert "300w: 5 faces: lfpw/train 5" in output
    assert "LFPW training" not in output


@pytest.mark.parametrize("layout", ["300w", "csv"])
def test_stored_pixels(tmp_path, layout):
    """An image that is stored upside down is upright in the records."""
    upright = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    (tmp_path / "src/afw").mkdir(parents=True)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    PIL.Image.fromarray(upright[::-1, ::-1]).save(tmp_path / "src/afw/1.png", exif=exif)
    points = np.random.default_rng(1).uniform(5, 55, (68, 2)).round(2)
    if layout == "300w":
        text = "\n".join(f"{x} {y}" for x, y in points + 1)
        (tmp_path / "src/afw/1.pts").write_text(text)
        options = ()
    else:
        header = ",".join(f"x_{i},y_{i}" for i in range(68))
        values = ",".join(str(value) for value in points.ravel())
        (tmp_path / "a.csv").write_text(f"image,{header}\nafw/1.png,{values}\n")
        options = ("--annotations", tmp_path / "a.csv", "--scheme", "ibug68")
    out = tmp_path / "out"
    assert run(layout, "--src", tmp_path / "src", "--out", out, "--stored-pixels", *options) == 0
    (record,) = open_dataset(out).source("train")
    np.testing.assert_array_equal(decode_image(record["image"]), upright)
    np.testing.assert_allclose(record["landmarks"], [69, 59] - points, atol=1e-4)


def test_bad_records_are_listed_and_the_exit_code_is_one(afw, tmp_path, capsys):
    for i in range(25):
        (afw / f"afw/bad_{i:02}.pts").write_text("1 2\n")
    (afw / "afw/0_1.jpg").write_bytes(b"")
    out = tmp_path / "out"
    assert run("300w", "--src", afw, "--out", out) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "300w: 4 faces: afw 4"
    assert lines[2] == "bad: afw/bad_00.pts: 1 point, expected 68"
    assert len([line for line in lines if line.startswith("bad: ")]) == 20
    assert lines[-2] == "... and 6 more in report.json"
    report = json.loads((out / "report.json").read_text())
    assert len(report["bad"]) == 26
    assert report["bad"][-1] == {"name": "afw/0_1.jpg", "reason": "the image file is empty"}


def test_errors_say_how_to_fix_them(afw, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"nowhere: no such folder; --src"):
        run("300w", "--src", tmp_path / "nowhere", "--out", out)
    with pytest.raises(SystemExit):
        run("synthetic", "--faces", 0, "--out", out)
    with pytest.raises(SystemExit):
        run("synthetic", "--seed", -1, "--out", out)
    with pytest.raises(InputError, match="--seed: -1 has to be at least 0"):
        prepare_synthetic("wflw98", out, num_train=1, num_test=1, seed=-1)
    with pytest.raises(InputError, match="no WFLW here"):
        run("wflw", "--src", afw, "--out", out)
    with pytest.raises(InputError, match="--src lies within it"):
        run("300w", "--src", afw, "--out", tmp_path, "--overwrite")
    run("300w", "--src", afw, "--out", out)
    with pytest.raises(InputError, match="--overwrite"):
        run("300w", "--src", afw, "--out", out)
    assert run("300w", "--src", afw, "--out", out, "--overwrite") == 0


@pytest.mark.parametrize("scheme", ["wflw98", "ibug68"])
def test_synthetic(tmp_path, capsys, scheme):
    out = tmp_path / "out"
    flags = ("--scheme", scheme, "--faces", 6, "--test-faces", 2, "--seed", 1)
    assert run("synthetic", "--out", out, *flags) == 0
    dataset = open_dataset(out)
    assert dataset.scheme.name == scheme
    assert dataset.name == "synthetic"
    assert sum(dataset.num_faces.values()) == 8
    assert (out / "official").is_dir()
    assert capsys.readouterr().out.startswith("synthetic: 8 faces")


def test_real_faces(shared, tmp_path, capsys):
    assert run("300w", "--src", shared / "data/300w_fullsize", "--out", tmp_path / "out") == 0
    assert "300w: 5 faces: helen/train 3, lfpw/train 2" in capsys.readouterr().out
    assert run("wflw", "--src", shared / "data/wflw_sample", "--out", tmp_path / "wflw") == 0
    assert "wflw: 4 faces\n" in capsys.readouterr().out

"""Tests of corrupt inputs of `prepare` and `predict`: each is reported, without crashes or hangs.

Corrupt inputs must be rejected. Ambiguous inputs are those whose corruption cannot be detected, such as a
flipped bit in the scan of a JPEG or in a digit: they are either used or reported.
"""

import csv
import functools
import io
import json
import os
import signal
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.data import records
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.data.formats import w300, wflw
from lcgcn_jax.landmarks import IBUG68, WFLW98, LandmarkScheme
from lcgcn_jax.models.bundles import save_bundle
from lcgcn_jax.synthetic import draw_face

LIMIT = 240  # seconds, for a test that takes ten on two idle cores
NOT_UTF8 = os.fsdecode(b"caf\xe9 \xff")


@pytest.fixture(autouse=True)
def no_hang():
    """Stop tests that hang."""

    def stop(number, frame):
        raise TimeoutError(f"not done in {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@functools.cache
def face(scheme):
    return draw_face(3, scheme, size=96)


def encoded(suffix, *options):
    pixels = np.ascontiguousarray(face(IBUG68).image[..., ::-1])
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def flipped(content, num_bits, rng):
    """Flip random bits."""
    content = bytearray(content)
    for bit in rng.integers(8 * len(content), size=num_bits):
        content[bit // 8] ^= 1 << (bit % 8)
    return bytes(content)


def png_of(width, height):
    """PNG of a few KB with any size in its header, and correct checksums."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def jpeg_of(width, height, *options):
    """Complete JPEG with another size in its header."""
    jpeg = bytearray(encoded(".jpg", *options))
    frame = jpeg.index(b"\xff\xc2" if options else b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(jpeg)


def gif_of(width, height):
    file = io.BytesIO()
    PIL.Image.fromarray(face(IBUG68).image).save(file, "GIF")
    gif = bytearray(file.getvalue())
    gif[6:10] = struct.pack("<HH", width, height)
    return bytes(gif)


HUGE = {
    "huge.jpg": jpeg_of(20_000, 20_000),
    "progressive.jpg": jpeg_of(30_000, 30_000, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "largest.jpg": jpeg_of(65_500, 65_500),
    "wide.png": png_of(1_000_000, 1_000),
    "square.png": png_of(30_000, 30_000),
    "largest.png": png_of(2**31 - 1, 2**31 - 1),
    "huge.gif": gif_of(60_000, 20_000),
    "as a image.jpg": gif_of(60_000, 60_000),
}
"""Images of a few KB that would take gigabytes of memory."""


def corrupt_images():
    """Images by file name: those that must be rejected, and those that may decode."""
    rng = np.random.default_rng(0)
    rejected, ambiguous = dict(HUGE), {}
    for suffix in (".jpg", ".png"):
        whole = encoded(suffix)
        for i, part in enumerate(np.linspace(0.001, 0.999, 14)):
            rejected[f"cut {i}{suffix}"] = whole[: int(part * len(whole))]
        # PNG chunks have checksums; JPEG has none.
        kind = ambiguous if suffix == ".jpg" else rejected
        for i in range(16):
            kind[f"flipped {i}{suffix}"] = flipped(whole, 1, rng)
            kind[f"flipped often {i}{suffix}"] = flipped(whole, 30, rng)
        half = len(whole) // 2
        kind[f"part missing{suffix}"] = whole[: half - 60] + whole[half + 60 :]
        kind[f"part zero{suffix}"] = whole[: half - 60] + bytes(120) + whole[half + 60 :]
        rejected |= {
            f"empty{suffix}": b"",
            f"a byte{suffix}": whole[:1],
            f"zeros{suffix}": bytes(5000),
            f"noise{suffix}": rng.bytes(5000),
            f"page{suffix}": b"<!DOCTYPE html><html>404 not found</html>",
            f"no start{suffix}": whole[8:],
            f"swapped{suffix}": whole[half:] + whole[:half],
        }
    for i in range(8):  # flips in the header
        jpeg = encoded(".jpg")
        ambiguous[f"header {i}.jpg"] = flipped(jpeg[:200], 3, rng) + jpeg[200:]
    rejected |= {"no size.jpg": jpeg_of(0, 0), "no size.png": png_of(0, 0)}
    return rejected, ambiguous


def pts_text(points, header="version: 1\nn_points: 68\n"):
    lines = "\n".join(f"{x:.6f} {y:.6f}" for x, y in points)
    return f"{header}{{\n{lines}\n}}\n"


def corrupt_points():
    """Content of `.pts` files by name: those that must be rejected, and those that may have 68 points."""
    rng = np.random.default_rng(1)
    points = face(IBUG68).landmarks + 1.0
    text = pts_text(points)
    lines = text.splitlines()

    def with_line(number, line):
        return "\n".join([*lines[:number], line, *lines[number + 1 :]])

    def with_points(change):
        changed = points.copy()
        change(changed)
        return pts_text(changed)

    def with_far_points(size):
        def change(changed):
            changed[:40] = size * rng.uniform(-1, 1, (40, 2))

        return with_points(change)

    cut = rng.integers(1, text.rindex("}"), 8)
    rejected = {f"cut {i}": text[:end] for i, end in enumerate(cut)}
    values = ("nose", "nan", "inf", "-inf", "1e400", "-50000", "1e30", "-1e308", "0x10", "1,5", "")
    rejected |= {f"value {value}": with_line(9, f"{value} 40.5") for value in values}
    rejected |= {
        "words": "these are no points\n" * 68,
        "empty": "",
        "no points": "version: 1\nn_points: 0\n{\n}\n",
        "67": pts_text(points[:67]),
        "69": pts_text(np.vstack([points, points[:1]])),
        "says 67": pts_text(points, "version: 1\nn_points: 67\n"),
        "says 10 digits": pts_text(points, "n_points: 6868686868\n"),
        "no brace": text.replace("}", ""),
        "three columns": with_line(9, "40.5 40.5 1"),
        "all negative": pts_text(points - 5000),
        "mostly far": with_far_points(1e6),
        "mostly infinite in float32": with_far_points(1e300),
        "one location": pts_text(np.full((68, 2), 40.0)),
        "one column": "\n".join(["12"] * 68),
        "UTF-16": text.encode("utf-16"),
        "noise": rng.bytes(2000),
        "NUL": with_line(9, "4\0 5"),
        "Latin-1": with_line(9, "4 5 \xe9").encode("latin-1"),
    }
    ambiguous = {f"flipped {i}": flipped(text.encode(), 1 + i % 3, rng) for i in range(10)}
    return rejected, ambiguous


def corrupt_rows(path_of_good):
    """Lines of a WFLW list, by their error, and a correct line."""
    rng = np.random.default_rng(2)
    points = face(WFLW98).landmarks
    box = [*points.min(axis=0), *points.max(axis=0)]
    good = [*points.reshape(-1), *box, 0, 1, 0, 0, 1, 0]
    numbers = {
        "nan": (7, "nan"), "inf": (8, "-inf"), "1e999": (9, "1e999"), "word": (10, "mouth"),
        "1e300": (11, "1e300"), "-1e300": (12, "-1e300"), "negative": (13, -40_000.0),
        "box nan": (197, "nan"), "box 1e300": (198, "1e300"), "box -1e300": (196, "-1e300"),
        "box inside out": (198, -5.0), "box far": (198, 1e5), "attribute": (202, 2), "half": (203, 0.5),
    }  # fmt: skip
    rows = {}
    for name, (column, value) in numbers.items():
        rows[name] = ([*good[:column], value, *good[column + 1 :]], path_of_good)
    rows["all negative"] = ([*(points.reshape(-1) - 9000), *good[196:]], path_of_good)
    far = [v + 400 for v in box]
    rows["box elsewhere"] = ([*good[:196], *far, *good[200:]], path_of_good)
    rows["box of nothing"] = (
        [*good[:196], 40, 40, 40 + 1e-9, 40 + 1e-9, *good[200:]],
        path_of_good,
    )
    for image in BAD_PATHS:
        rows[f"path {image[:20]}"] = (good, image)
    lines = {name: (*row, path) for name, (row, path) in rows.items()}
    texts = {name: " ".join(map(str, line)).encode() for name, line in lines.items()}
    whole = " ".join(map(str, (*good, path_of_good))).encode()
    for i, end in enumerate(rng.integers(1, len(whole) - len(path_of_good), 8)):
        texts[f"cut {i}"] = whole[:end]
    texts["one more"] = b"3.5 " + whole
    texts["not UTF-8"] = whole + b"\xff\xfe"
    texts["not UTF-8 and there"] = whole.replace(b"good.jpg", os.fsencode(f"{NOT_UTF8}.jpg"))
    texts["NUL"] = whole + b"\0"
    texts["noise"] = rng.bytes(300).replace(b"\n", b"").replace(b"\r", b"")
    return texts, whole


BAD_PATHS = [
    "../../outside.jpg", "a/../../../outside.jpg", "..", ".", "", "/", "/etc/passwd", "OUTSIDE", "a",
    "link.jpg", "link to folder/outside.jpg", "loop.jpg", "device.jpg", "pipe.jpg", "missing.jpg",
    "x" * 5000 + ".jpg", "good.jpg/..", "C:\\good.jpg", "\u202egood.jpg", "good.jpg\u200b",
]  # fmt: skip
"""Image paths that must be rejected; OUTSIDE is replaced by an existing absolute path."""


def make_images(folder):
    """Write a valid image next to links, a device and a pipe.

    Returns:
      Path of another valid image, two folders up, which is the target of the links.
    """
    folder.mkdir(parents=True)
    (folder / "good.jpg").write_bytes(encoded(".jpg"))
    (folder / "a").mkdir()
    outside = folder.parents[1] / "outside.jpg"
    outside.write_bytes(encoded(".jpg"))
    (folder / "link.jpg").symlink_to(outside)
    (folder / "link to folder").symlink_to(folder.parents[1])
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    (folder / f"{NOT_UTF8}.jpg").write_bytes(encoded(".jpg"))
    return outside


class Sandbox:
    """Folder in which a command runs; only `out` may change."""

    def __init__(self, folder, capfd):
        self.folder = folder
        self.out = folder / "out"
        self._capfd = capfd

    def snapshot(self):
        """Content or link target of all files outside of `out`."""
        files = {}
        for path in self.folder.rglob("*"):
            if path == self.out or self.out in path.parents:
                continue
            if path.is_symlink():
                files[path] = os.readlink(path)
            else:
                files[path] = path.read_bytes() if path.is_file() else path.stat().st_mode
        return files

    def run(self, *arguments):
        """Run `lcgcn`; returns the exit code and the lines of stdout and stderr."""
        before = self.snapshot()
        self._capfd.readouterr()
        code = main([str(a) for a in arguments])
        captured = self._capfd.readouterr()
        assert self.snapshot() == before
        assert "Traceback" not in captured.err
        return code, captured.out.splitlines(), captured.err.splitlines()

    def prepare(self, layout, *arguments):
        """Run `lcgcn prepare`; returns bad records by name, and the names of the others."""
        code, *_ = self.run("prepare", layout, *arguments, "--out", self.out)
        assert code == 1
        content = (self.out / records.REPORT).read_text()
        bad = {record["name"]: record["reason"] for record in json.loads(content)["bad"]}
        assert all(name.isprintable() and reason.isprintable() for name, reason in bad.items())
        dataset = open_dataset(self.out)
        stored = list(dataset.source("+".join(dataset.splits)))
        for record in stored:
            assert decode_image(record["image"]).size
            for field in ("landmarks", "box", "to_source"):
                assert np.isfinite(record[field]).all()
        assert len(stored) == sum(dataset.num_faces.values())
        return bad, [record["name"] for record in stored]

    def run_rejected(self, *arguments):
        """Run `lcgcn`, which must fail; returns its error message of one line."""
        code, out, err = self.run(*arguments)
        assert code == 2
        assert out == []
        (line,) = [line for line in err if line.startswith("lcgcn: error: ")]
        assert not self.out.exists()
        return line


@pytest.fixture
def sandbox(tmp_path, capfd, monkeypatch):
    # Also detect files written to the current folder.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Sandbox(tmp_path, capfd)


CORRUPT_IMAGES, AMBIGUOUS_IMAGES = corrupt_images()
POINTS, AMBIGUOUS_POINTS = corrupt_points()
ROWS, GOOD_ROW = corrupt_rows("good.jpg")


def test_number_of_corrupt_inputs():
    kinds = (CORRUPT_IMAGES, AMBIGUOUS_IMAGES, POINTS, AMBIGUOUS_POINTS, ROWS, CSV_ROWS, CSV_FILES)
    kinds += (ANNOTATIONS, COCO_FILES, BOX_FILES)
    # Images are used for `prepare` and for `predict`, and are counted once.
    assert sum(map(len, kinds)) >= 300


@pytest.mark.slow
def test_prepare_300w(sandbox):
    afw = sandbox.folder / "src/afw"
    make_images(afw)
    whole = pts_text(face(IBUG68).landmarks + 1.0)
    rejected, ambiguous = {"loop.jpg", "link.jpg", "device.jpg", "pipe.jpg"}, set()
    for names, images in ((rejected, CORRUPT_IMAGES), (ambiguous, AMBIGUOUS_IMAGES)):
        for name, content in images.items():
            if name.endswith((".jpg", ".png")):
                # The stem includes the suffix, because the files of a face share their stem.
                stem, _, suffix = name.rpartition(".")
                (afw / f"{stem} {suffix}.{suffix}").write_bytes(content)
                (afw / f"{stem} {suffix}.pts").write_text(whole)
                names.add(f"{stem} {suffix}.{suffix}")
    for names, texts in ((rejected, POINTS), (ambiguous, AMBIGUOUS_POINTS)):
        for name, content in texts.items():
            content = content if isinstance(content, bytes) else content.encode()
            (afw / f"points {name}.pts").write_bytes(content)
            (afw / f"points {name}.jpg").write_bytes(encoded(".jpg"))
            names.add(f"points {name}.pts")
    for name in ("good", "link", "loop", "device", "pipe", NOT_UTF8):
        (afw / f"{name}.pts").write_text(whole)
    for name in (
        "points are a folder",
        "points are a pipe",
        "points are a link",
        "points never end",
    ):
        (afw / f"{name}.jpg").write_bytes(encoded(".jpg"))
        rejected.add(f"{name}.pts")
    (afw / "points are a folder.pts").mkdir()
    os.mkfifo(afw / "points are a pipe.pts")
    (afw / "points are a link.pts").symlink_to("../../outside.pts")
    (afw.parent.parent / "outside.pts").write_text(whole)
    (afw / "points never end.pts").symlink_to("/dev/zero")

    bad, used = sandbox.prepare("300w", "--src", sandbox.folder / "src")
    stems = {name.rpartition(".")[0] for name in bad}
    assert {f"afw/{Path(name).stem}" for name in rejected} <= stems
    assert "afw/caf\\udce9 \\udcff.pts" in bad
    assert stems.isdisjoint(name.rpartition(".")[0] for name in used)
    assert len(bad) + len(used) == len(list(afw.glob("*.pts")))
    assert "afw/good.jpg" in used
    assert any("flipped" in name for name in used), "some images with flipped bits still decode"
    for name in HUGE:
        stem, _, suffix = name.rpartition(".")
        if name.endswith((".jpg", ".png")) and "image" not in name:
            assert "the limit is 268,435,456 pixels" in bad[f"afw/{stem} {suffix}.{suffix}"]
    assert "NaN or infinite" in bad["afw/points value 1e400.pts"]
    assert "two negative coordinates" in bad["afw/points mostly far.pts"]
    assert "n_points is 67, but the file has 68" in bad["afw/points says 67.pts"]


def test_links_within_300w_are_followed(tmp_path):
    elsewhere = tmp_path / "disk/faces"
    make_images(elsewhere)
    (elsewhere / "good.pts").write_text(pts_text(face(IBUG68).landmarks + 1.0))
    (elsewhere / "again.pts").symlink_to("good.pts")
    (elsewhere / "again.jpg").symlink_to("good.jpg")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/afw").symlink_to(elsewhere)
    assert [f.name for f in w300.read(tmp_path / "src").faces] == ["afw/again.jpg", "afw/good.jpg"]


@pytest.mark.slow
def test_prepare_wflw(sandbox):
    src = sandbox.folder / "src"
    outside = make_images(src / wflw.IMAGES)
    lines = [GOOD_ROW, *(row.replace(b"OUTSIDE", os.fsencode(outside)) for row in ROWS.values())]
    for split in wflw.SPLITS:
        path = wflw.list_file(src, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\n".join(lines))
    bad, used = sandbox.prepare("wflw", "--src", src)
    # Readers report the line number; `encode_face` also reports the image.
    numbers = {
        (
            split,
            int(
                name.split(":")[1] if name.startswith("list") else name[6:].split(":")[0].strip("/")
            ),
        )
        for split in wflw.SPLITS
        for name in bad
        if split in name
    }
    assert used == [f"{split}/000001:good.jpg" for split in wflw.SPLITS]
    assert numbers == {(split, i + 2) for split in wflw.SPLITS for i in range(len(ROWS))}


FOUR = ("left", "right", "tip", "chin")
SCHEME = {"name": "four", "names": FOUR, "mirror_pairs": [["left", "right"]], "normalizer": "given"}
FACE = {"left": (30, 40), "right": (60, 41), "tip": (45, 52), "chin": (46, 70)}
CSV_ROW = {
    "image": "good.jpg",
    "x0": 25,
    "y0": 30,
    "x1": 70,
    "y1": 75,
    "split": "train",
    "normalizer": 30,
}
CSV_ROW |= {
    f"{axis}_{n}": v for n, point in FACE.items() for axis, v in zip("xy", point, strict=True)
}

CSV_ROWS = [{"image": image} for image in BAD_PATHS]
CSV_ROWS += [
    {"x_tip": value} for value in ("", "nose", "nan", "inf", "1e999", "1e300", "-1e300", -9e4)
]
CSV_ROWS += [{"x0": value} for value in ("", "left", "nan", "-1e300", 1e300, 90, -5e4)]
CSV_ROWS += [{"normalizer": value} for value in (0, -3, "inf", 1e300, 1e-300, "wide")]
CSV_ROWS += [{"split": value} for value in ("", "val", "../train")]
CSV_ROWS += [
    {f"x_{name}": -5000 for name in FOUR},
    {f"{axis}_{name}": 9 for name in FOUR for axis in "xy"},
]
"""Changes of a row, each with one error."""


def csv_of(rows):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(CSV_ROW))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


@pytest.fixture
def custom(sandbox):
    """Sandbox with images and a scheme, and their options."""
    sandbox.outside = make_images(sandbox.folder / "src/images")
    (sandbox.folder / "scheme.json").write_text(json.dumps(SCHEME))
    sandbox.options = (
        "--src",
        sandbox.folder / "src/images",
        "--scheme",
        sandbox.folder / "scheme.json",
    )
    return sandbox


@pytest.mark.slow
def test_prepare_csv(custom):
    rows = [CSV_ROW | changes for changes in ({}, *CSV_ROWS, {})]
    rows = [row | {"image": row["image"].replace("OUTSIDE", str(custom.outside))} for row in rows]
    path = custom.folder / "points.csv"
    path.write_bytes(csv_of(rows))
    bad, used = custom.prepare("csv", "--annotations", path, *custom.options)
    assert [name.split("/")[1] for name in used] == [
        "000002:good.jpg",
        f"{len(rows) + 1:06d}:good.jpg",
    ]
    assert len(bad) == len(CSV_ROWS)


def corrupt_csv_files():
    rng = np.random.default_rng(3)
    whole = csv_of([CSV_ROW] * 5)
    files = [whole[:end] for end in rng.integers(0, whole.index(b"\r\n"), 4)]
    files += [
        rng.bytes(500),
        whole.replace(b"good", b"caf\xe9"),
        whole.decode().encode("utf-16-le"),
    ]
    files += [whole + b'"' + b"x" * 200_000, b"\0" * 300, whole.replace(b",", b" ")]
    files += [whole.decode().encode("utf-16")[:-1]]
    return files


def coco_of(*changes):
    keypoints = [float(v) for point in FACE.values() for v in (*point, 2)]
    fields = {"image_id": 0, "keypoints": keypoints, "bbox": [25, 30, 45, 45], "normalizer": 30}
    images = {
        i: image for i, image in enumerate(["good.jpg", *BAD_PATHS, f"{NOT_UTF8}.jpg", "\ud800"])
    }
    return {
        "images": [{"id": i, "file_name": name} for i, name in images.items()],
        "annotations": [{"id": i} | fields | change for i, change in enumerate(changes)],
    }


def with_keypoint(index, value):
    keypoints = coco_of({})["annotations"][0]["keypoints"]
    return {"keypoints": [*keypoints[:index], value, *keypoints[index + 1 :]]}


ANNOTATIONS = [{"image_id": i + 1} for i in range(len(BAD_PATHS) + 2)]
ANNOTATIONS += [{"image_id": value} for value in (-1, None, [], {}, "x", 1e300, 10**400)]
ANNOTATIONS += [
    with_keypoint(3, v) for v in (float("nan"), float("inf"), -1e300, 10**400, "x", None, [], -1e5)
]
ANNOTATIONS += [with_keypoint(2, v) for v in (-1, 3, 0.5, float("nan"))]
ANNOTATIONS += [
    {"keypoints": v} for v in ([1], "words", {"x": 1}, 5, [[1, 2, 3]] * 4, [0, 0, 2] * 4)
]
ANNOTATIONS += [
    {"bbox": v} for v in ([1, 2, 3], "box", [0, 0, 0, 5], [1, 2, -3, 4], [0, 0, 1e300, 9])
]
ANNOTATIONS += [
    {"bbox": v} for v in ([float("nan")] * 4, [900, 900, 5, 5], [-1e300, 0, 2e300, 9], 7)
]
ANNOTATIONS += [{"normalizer": v} for v in (0, -1, 1e300, 1e-300, float("inf"), "x", [], 10**400)]
ANNOTATIONS += [{"id": "line\nend \x1b[2J \ud800", "image_id": -1}]
"""Changes of an annotation, each with one error."""


@pytest.mark.slow
def test_prepare_coco(custom):
    content = json.dumps(coco_of({}, *ANNOTATIONS, {})).replace("OUTSIDE", str(custom.outside))
    path = custom.folder / "points.json"
    path.write_text(content)
    bad, used = custom.prepare("coco", "--annotations", path, *custom.options)
    last = len(ANNOTATIONS) + 2
    assert [name.split("/")[1] for name in used] == ["000001:good.jpg", f"{last:06d}:good.jpg"]
    assert len(bad) == len(ANNOTATIONS)
    assert "points.json: annotation line\\nend \\x1b[2J \\ud800" in bad


def corrupt_coco_files():
    rng = np.random.default_rng(4)
    whole = json.dumps(coco_of({}, {})).encode()
    files = [whole[:end] for end in rng.integers(0, len(whole), 6)]
    files += [
        rng.bytes(500),
        b"[" * 100_000,
        b"[]",
        b"{}",
        b"null",
        b'{"images": 5, "annotations": 5}',
    ]
    files += [whole.replace(b"good", b"caf\xe9"), whole.replace(b'"id": 0', b'"id": [0]', 1)]
    files += [whole.replace(b"30.0", b"3" * 5000), json.dumps(coco_of()).encode()]
    return files


CSV_FILES, COCO_FILES = corrupt_csv_files(), corrupt_coco_files()


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "files"), [("csv", CSV_FILES), ("coco", COCO_FILES)])
def test_corrupt_annotation_files_raise_one_line(custom, layout, files):
    path = custom.folder / f"points of\n{NOT_UTF8}.{layout}"
    for content in files:
        path.write_bytes(content)
        line = custom.run_rejected(
            "prepare", layout, "--annotations", path, *custom.options, "--out", custom.out
        )
        assert f"points of\\ncaf\\udce9 \\udcff.{layout}: " in line or "no face" in line


@pytest.fixture
def model(toy, random_bundle, sandbox):
    """Bundle of a model with two convolutions."""
    fields = {"heatmap": {"name": "toy"}, "decode": "soft", "graph": None, "bn_momentum": 0.9}
    scheme = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3})
    save_bundle(sandbox.folder / "model", random_bundle(fields, scheme, 32), "")
    return sandbox.folder / "model"


@pytest.mark.slow
def test_predict(sandbox, model):
    photos = sandbox.folder / "src/photos"
    make_images(photos)
    for images in (CORRUPT_IMAGES, AMBIGUOUS_IMAGES):
        for name, content in images.items():
            (photos / name).write_bytes(content)
    odd_names = (
        "..jpg",
        "...jpg",
        "new\nline.jpg",
        "\x1b[2Jclear.jpg",
        " .jpg",
        "-o.jpg",
        "{}%s.jpg",
    )
    for name in odd_names:
        (photos / name).write_bytes(encoded(".jpg"))
    rejected = {f"{photos}/{name}" for name in CORRUPT_IMAGES}
    assert (sandbox.folder / "src/photos/pipe.jpg").is_fifo(), "it is skipped"

    code, out, err = sandbox.run(
        "predict", "--model", model, photos, "--whole-image", "--out", sandbox.out
    )
    assert code == 1
    left_out = {
        line.removeprefix("left out: ").rpartition(": ")[0]
        for line in err
        if line.startswith("left out: ")
    }
    assert rejected <= left_out
    processed = {line.split(": 1 face; ")[0] for line in out}
    files = {str(path) for path in photos.rglob("*") if path.is_file() and path.suffix != ""}
    printed = {"".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in files}
    # Links to folders are not followed.
    assert processed | left_out == {n for n in printed if Path(n).is_relative_to(photos)}
    assert not processed & left_out
    results = list(sandbox.out.rglob("*.json"))
    assert len(results) == len(processed)
    for path in results:
        result = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert len(result["faces"]) == 1
    for name in (*(Path(n).stem for n in odd_names[2:]), "..jpg", "...jpg", NOT_UTF8):
        assert (sandbox.out / f"{name}.json").is_file()


@pytest.mark.parametrize(
    "name", ["loop.jpg", "missing.jpg", "x" * 5000, "x" * 245 + ".jpg", "a\nb.jpg"]
)
def test_predict_reports_files_that_cannot_be_read(sandbox, model, name):
    make_images(sandbox.folder / "src/photos")
    if len(name) == 249:
        (sandbox.folder / "src/photos" / name).write_bytes(encoded(".jpg"))
    path = sandbox.folder / "src/photos" / name
    line = sandbox.run_rejected(
        "predict", "--model", model, path, "--whole-image", "--out", sandbox.out
    )
    assert repr(str(path))[1:-1] in line


def corrupt_box_files():
    rng = np.random.default_rng(5)
    good = {"good.jpg": [[20, 20, 70, 70]]}
    boxes = [
        ["20", 20, 70, 70],
        [20, 20, 70],
        [20, 20, 70, 70, 1],
        [70, 70, 20, 20],
        [20, 20, 20, 20],
    ]
    boxes += [
        [500, 20, 600, 70],
        [float("nan")] * 4,
        [-1e308, -1e308, 1e308, 1e308],
        [0, 0, 10**400, 9],
    ]
    boxes += [[-1e6, -1e6, 1e6, 1e6], [0, 0, 1e-310, 1e-310], [True, 20, 70, 70], None, {}, "box"]
    files = [(".json", json.dumps({"good.jpg": [box]})) for box in boxes]
    whole = json.dumps(good)
    files += [(".json", whole[:end]) for end in rng.integers(0, len(whole), 4)]
    files += [(".json", text) for text in ("[" * 100_000, "[]", "{}", "5", '{"good.jpg": 5}')]
    header = "image,x0,y0,x1,y1\n"
    rows = ("good.jpg,1,2,3", "good.jpg,a,b,c,d", "good.jpg,nan,1,2,3", f"{'x' * 200_000},1,2,3,4")
    files += [(".csv", header + row) for row in (*rows, "")]
    files += [(".csv", text) for text in ("", "image\ngood.jpg", "\0")]
    return [(suffix, text.encode()) for suffix, text in files] + [(".csv", rng.bytes(300))]


BOX_FILES = corrupt_box_files()


@pytest.mark.slow
def test_corrupt_box_files_raise_one_line(sandbox, model):
    make_images(sandbox.folder / "src/photos")
    good = sandbox.folder / "src/photos/good.jpg"
    for suffix, content in BOX_FILES:
        path = sandbox.folder / f"boxes{suffix}"
        path.write_bytes(content)
        line = sandbox.run_rejected(
            "predict", "--model", model, good, "--boxes", path, "--out", sandbox.out
        )
        assert str(path) in line or str(good) in line

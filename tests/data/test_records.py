import dataclasses
import errno
import hashlib
import io
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from lcgcn_jax import geometry
from lcgcn_jax.data import records
from lcgcn_jax.data.crops import crop_face
from lcgcn_jax.data.dataset import open_dataset, require_scheme
from lcgcn_jax.data.formats import w300
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import WFLW98


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_record_is_a_translated_part_of_the_image(maker, suffix):
    path = maker.image(f"a{suffix}", 200, 150)
    box = np.array([50.0, 40.0, 80.0, 70.0])
    face = maker.face(
        path, center=(66.3, 58.7), subset="s", provided_box=box, attributes=(True, False)
    )
    out = path.parent / "out"
    records.prepare(maker.annotations([face], ("pose", "blur")), out)
    (record,) = open_dataset(out).source("train")
    image = records.decode_image(path.read_bytes())
    x0, y0 = record["to_source"][:, 2].astype(int)
    crop = records.decode_image(record["image"])
    height, width = crop.shape[:2]
    np.testing.assert_array_equal(record["to_source"], [[1, 0, x0], [0, 1, y0]])
    part = image[y0 : y0 + height, x0 : x0 + width]
    if suffix == ".png":
        np.testing.assert_array_equal(crop, part)
    else:
        assert record["image"].startswith(b"\xff\xd8")
        assert np.abs(crop.astype(float) - part).mean() < 3
    # Twice the box's side of 32, to whole pixels.
    assert 64 <= width <= 66
    assert 64 <= height <= 66
    back = geometry.transform_points(record["to_source"], record["landmarks"])
    np.testing.assert_allclose(back, face.landmarks, atol=1e-4)
    corner = np.array([x0, y0, x0, y0])
    np.testing.assert_allclose(record["box"] + corner, [50.3, 42.7, 82.3, 74.7], rtol=1e-5)
    np.testing.assert_array_equal(record["provided_box"] + corner, box)
    assert record["attributes"].tolist() == [True, False]
    assert record["visible"].all()
    assert (record["name"], record["subset"], record["group"]) == (path.name, "s", "one")


def test_no_padding_is_invented_at_the_border(maker):
    path = maker.image("a.png", 200, 150)
    (record,) = maker.dataset([maker.face(path, center=(20, 140))]).source("train")
    crop = records.decode_image(record["image"])
    x0, y0 = record["to_source"][:, 2].astype(int)
    image = records.decode_image(path.read_bytes())
    np.testing.assert_array_equal(crop, image[y0:, : crop.shape[1]])
    assert x0 == 0
    assert crop.shape[0] < 64


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_image_that_the_crop_covers_is_kept_byte_for_byte(maker, suffix):
    path = maker.image(f"a{suffix}", 66, 64)
    (record,) = maker.dataset([maker.face(path, center=(33, 32))]).source("train")
    assert record["image"] == path.read_bytes()
    assert np.isnan(record["provided_box"]).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_is_appended_to_an_image_is_not_stored(maker, suffix):
    path = maker.image(f"a{suffix}", 66, 64)
    image = path.read_bytes()
    path.write_bytes(image + b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(5000))
    (record,) = maker.dataset([maker.face(path, center=(33, 32))]).source("train")
    assert record["image"] == image


def test_orientation_tags_in_records_of_earlier_versions_are_ignored(maker):
    path = maker.image("a.jpg", 66, 64)
    plain = path.read_bytes()
    # An Exif block that says "turn by 90 degrees", right after the start of the image.
    tag = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + b"\0\0\0\0"
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (66, 64, 3)
    np.testing.assert_array_equal(records.decode_image(turned), records.decode_image(plain))


def gray_png():
    return cv2.imencode(".png", np.full((80, 90), 77, np.uint16))[1].tobytes()


def test_sixteen_bit_gray_png_reads_as_rgb(maker):
    path = maker.folder / "a.png"
    path.write_bytes(gray_png())
    (record,) = maker.dataset([maker.face(path)]).source("train")
    assert records.decode_image(record["image"]).shape[2] == 3


def cut_to(part):
    return lambda encoded: encoded[: int(part * len(encoded))]


BROKEN = {
    "empty": (lambda encoded: b"", "empty"),
    "half": (cut_to(0.5), "truncated"),
    "nearly whole": (cut_to(0.99), "truncated"),
    "start only": (lambda encoded: encoded[:20], "truncated"),
    "words": (lambda encoded: b"<html>not found</html>", "cannot be decoded"),
    "no body": (lambda encoded: encoded[:12] + encoded[-14:], "truncated"),
}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_images_are_reported_and_writing_goes_on(maker, suffix, broken, capfd):
    corrupt, reason = BROKEN[broken]
    path, good = maker.image(f"a{suffix}"), maker.image("b.jpg")
    path.write_bytes(corrupt(path.read_bytes()))
    out = maker.folder / "out"
    report = records.prepare(maker.annotations([maker.face(path), maker.face(good)]), out)
    (bad,) = report.bad
    assert bad.name == path.name
    assert reason in bad.reason
    assert report.num_faces == {"train": 1}
    assert json.loads((out / records.REPORT).read_text())["bad"] == [dataclasses.asdict(bad)]
    capfd.readouterr()  # libjpeg and libpng complain on standard error


def test_an_image_gone_since_reading_is_reported(maker):
    path, good = maker.image("a.jpg"), maker.image("b.jpg")
    path.unlink()
    report = records.prepare(
        maker.annotations([maker.face(path), maker.face(good)]), maker.folder / "out"
    )
    assert "cannot be read" in report.bad[0].reason


def test_padding_after_a_jpeg_is_no_truncation(maker):
    path = maker.image("a.jpg")
    path.write_bytes(path.read_bytes() + bytes(3000))
    assert maker.dataset([maker.face(path)]).num_faces == {"train": 1}


@pytest.mark.parametrize(
    ("landmarks", "reason"),
    [
        ([[20, 20], [50, 20], [35, 35], [25, 50], [-900, 50]], "900 px outside the 90 x 80 image"),
        ([[20, 20], [50, 20], [35, 35], [25, 50], [45, 180]], "101 px outside"),
        ([[92, 20], [99, 20], [96, 35], [93, 40], [98, 40]], "no landmark lies on"),
        ([[20, 20]] * 5, "no extent"),
    ],
)
def test_landmarks_off_the_picture_are_reported(maker, landmarks, reason):
    path = maker.image("a.jpg")
    stray = maker.face(path, landmarks=np.array(landmarks, float))
    report = records.prepare(maker.annotations([stray, maker.face(path)]), maker.folder / "out")
    (bad,) = report.bad
    assert reason in bad.reason


def test_landmarks_a_little_outside_are_kept(maker):
    path = maker.image("a.jpg")
    face = maker.face(path, center=(5, 75))
    (record,) = maker.dataset([face]).source("train")
    back = geometry.transform_points(record["to_source"], record["landmarks"])
    np.testing.assert_allclose(back, face.landmarks, atol=1e-4)


def test_nothing_usable_is_an_error_and_leaves_nothing(maker):
    path = maker.image("a.jpg")
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no face can be used, 1 are bad; the first: a.jpg"):
        maker.dataset([maker.face(path)])
    assert [p.name for p in maker.folder.iterdir()] == ["a.jpg"]


def test_an_existing_folder_is_refused(maker):
    faces = [maker.face(maker.image("a.jpg"))]
    annotations, out = maker.annotations(faces), maker.folder / "out"
    out.mkdir()
    records.prepare(annotations, out)  # an empty one is as good as none
    with pytest.raises(InputError, match=r"out: already exists; .* --overwrite"):
        records.prepare(annotations, out)
    records.prepare(annotations, out, overwrite=True)
    assert open_dataset(out).num_faces == {"train": 1}
    assert sorted(p.name for p in maker.folder.iterdir()) == ["a.jpg", "out"]


def test_only_a_dataset_is_overwritten(maker):
    faces = [maker.face(maker.image("a.jpg"))]
    out = maker.folder / "precious"
    out.mkdir()
    (out / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match="holds something else"):
        records.prepare(maker.annotations(faces), out, overwrite=True)
    assert (out / "thesis.tex").exists()


def test_an_interrupted_run_leaves_the_old_dataset(maker, monkeypatch):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "out"
    records.prepare(annotations, out)
    before = open_dataset(out).fingerprint

    def interrupt(face):
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "encode_face", interrupt)
    with pytest.raises(KeyboardInterrupt):
        records.prepare(annotations, out, overwrite=True)
    assert open_dataset(out).fingerprint == before
    assert sorted(p.name for p in maker.folder.iterdir()) == ["a.jpg", "out"]


def test_validation_is_a_fixed_part_of_train_by_group(maker):
    path = maker.image("a.png", 66, 64)
    faces = [
        maker.face(path, center=(33, 32), name=f"{group}_{i}", group=f"afw/{group}")
        for group in range(40)
        for i in range(2)
    ]
    dataset = maker.dataset(faces)
    held_out = [record["group"] for record in dataset.source("validation")]
    # What SHA-256 says, today and for ever.
    assert held_out == [f"afw/{group}" for group in (19, 29, 35) for _ in range(2)]
    assert dataset.num_faces == {"train": 74, "validation": 6}
    everyone = [record["name"] for record in dataset.source("train+validation")]
    assert sorted(everyone) == sorted(face.name for face in faces)


def faces_of_groups(maker, groups, bad=()):
    """A face per group, each on its own image; those in `bad` are on an empty file."""
    faces = []
    for group in groups:
        path = maker.image(f"{group}.png", 66, 64, seed=len(faces))
        if group in bad:
            path.write_bytes(b"")
        faces.append(maker.face(path, center=(33, 32), name=group, group=group))
    return faces


@pytest.mark.parametrize("number", [2, 3, 5, 10, 14])
def test_a_small_dataset_gets_a_validation_split(maker, number):
    faces = faces_of_groups(maker, [f"image_{i:04}.jpg" for i in range(1, number + 1)])
    dataset = maker.dataset(faces)
    assert dataset.num_faces["validation"] >= 1
    assert dataset.num_faces["train"] >= 1
    # Whatever the order of the faces.
    again = maker.dataset(faces[::-1], name="again")
    groups = [{r["group"] for r in d.source("validation")} for d in (dataset, again)]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("group", ["afw/0", "afw/19"])
def test_one_group_is_training_data_with_a_note(maker, group):
    faces = faces_of_groups(maker, [group])  # the hash of afw/19 chooses it for validation
    report = records.prepare(maker.annotations(faces * 2), maker.folder / "out")
    assert report.num_faces == {"train": 2}
    (note,) = report.notes
    assert "no validation split: all training faces are of one image or group" in note
    assert "--config.data.validation_split=train" in note


def test_unusable_faces_do_not_count_as_validation(maker):
    groups = [f"image_{i:04}.jpg" for i in range(1, 5)]
    order = sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())
    report = records.prepare(
        maker.annotations(faces_of_groups(maker, groups, bad=order[:2])), maker.folder / "out"
    )
    assert report.num_faces == {"train": 1, "validation": 1}
    assert not report.notes
    (held_out,) = open_dataset(maker.folder / "out").source("validation")
    assert held_out["group"] == order[2]
    report = records.prepare(
        maker.annotations(faces_of_groups(maker, groups, bad=order[:3])), maker.folder / "one"
    )
    assert report.num_faces == {"train": 1}
    assert len(report.notes) == 1


def test_a_test_split_alone_needs_no_validation(maker):
    faces = [dataclasses.replace(face, split="test") for face in faces_of_groups(maker, "ab")]
    report = records.prepare(maker.annotations(faces), maker.folder / "out")
    assert report.num_faces == {"test": 2}
    assert not report.notes


def test_images_in_two_splits_are_named(maker):
    first, second, third = (maker.image(f"{i}.png", 66, 64, seed=i) for i in range(3))
    copy = maker.folder / "copy.png"
    copy.write_bytes(second.read_bytes())
    faces = [
        maker.face(path, center=(33, 32), name=f"{split} {path}", group=str(path), split=split)
        for split, paths in {
            "train": (first, second, third),
            "validation": (first, copy),
            "test": (third,),
        }.items()
        for path in paths
    ]
    report = records.prepare(maker.annotations(faces), maker.folder / "out")
    assert report.notes == [
        "2 images are in train and in validation, so errors on validation come out too low: 0.png, "
        "1.png = copy.png",
        "1 image is in train and in test, so errors on test come out too low: 2.png",
    ]


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".ppm", ".gif"])
def test_other_formats_are_stored_as_png(maker, suffix):
    png = maker.image("a.png", 66, 64)
    path = maker.folder / f"b{suffix}"
    PIL.Image.open(png).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    (record,) = maker.dataset([maker.face(path, center=(33, 32))]).source("train")
    assert record["image"].startswith(b"\x89PNG")
    if suffix != ".gif":
        np.testing.assert_array_equal(
            records.decode_image(record["image"]), records.decode_image(png.read_bytes())
        )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_png_records_have_eight_bits_and_three_channels(maker, mode):
    path = maker.image("a.png", 66, 64)
    PIL.Image.open(path).convert(mode).save(path)
    (record,) = maker.dataset([maker.face(path, center=(33, 32))]).source("train")
    np.testing.assert_array_equal(
        np.asarray(PIL.Image.open(io.BytesIO(record["image"]))),
        records.decode_image(path.read_bytes()),
    )


WRITER_FAILURE = (
    'Failed to finalize writing of split "train": write() failed: No space left on device; writing '
    "faces-train.array_record-00000-of-00001; at byte 8192; Failed to close chunk_writer"
)


@pytest.mark.parametrize(
    "error", [RuntimeError(WRITER_FAILURE), OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_changes_nothing(maker, monkeypatch, error, exists):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "new/out"
    if exists:
        records.prepare(annotations, out)
        before = open_dataset(out).fingerprint

    def fail(self):
        raise error

    monkeypatch.setattr(records.Faces, "download_and_prepare", fail)
    with pytest.raises(InputError, match="out: cannot be written: No space left on device"):
        records.prepare(annotations, out, overwrite=True)
    if exists:
        assert open_dataset(out).fingerprint == before
        assert [p.name for p in out.parent.iterdir()] == ["out"]
    else:
        assert [p.name for p in maker.folder.iterdir()] == ["a.jpg"]


def test_other_failures_of_the_writer_are_not_the_users(maker, monkeypatch):
    def fail(self):
        raise RuntimeError("a bug")

    monkeypatch.setattr(records.Faces, "download_and_prepare", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        maker.dataset([maker.face(maker.image("a.jpg"))])


def test_an_exchange_that_is_interrupted_keeps_the_old_dataset(maker, monkeypatch):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "out"
    records.prepare(annotations, out)
    before = open_dataset(out).fingerprint
    replace = Path.replace

    def interrupt(path, target):
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        records.prepare(annotations, out, overwrite=True)
    assert open_dataset(out).fingerprint == before
    assert sorted(p.name for p in maker.folder.iterdir()) == ["a.jpg", "out"]


def test_splits_and_unions(maker):
    path = maker.image("a.png", 66, 64)
    faces = [
        maker.face(path, center=(33, 32), name=split, group="afw/0", split=split, subset=split)
        for split in ("train", "common", "challenge", "test")
    ]
    dataset = maker.dataset(faces)
    assert dataset.splits == ("train", "common", "challenge", "test")
    assert [record["name"] for record in dataset.source("full")] == ["common", "challenge"]
    assert [r["name"] for r in dataset.source("test+train")] == ["test", "train"]
    for unknown in ("validation", "full+nowhere", "train[:1]", ""):
        with pytest.raises(InputError, match=r"no split .*; there are train, common"):
            dataset.source(unknown)
    with pytest.raises(InputError, match="twice"):
        dataset.source("full+common")


def test_a_source_is_a_sequence_and_pickles(maker):
    path = maker.image("a.png", 66, 64)
    faces = [maker.face(path, center=(33, 32), name=str(i), group="afw/0") for i in range(3)]
    source = maker.dataset(faces).source("train")
    first = source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0]["image"] == first["image"]
    assert copy[-1]["name"] == "2"
    assert len(copy) == 3
    with pytest.raises(IndexError):
        copy[3]


def test_metadata(maker):
    path = maker.image("a.jpg")
    face = maker.face(path, subset="afw", attributes=(True,))
    out = maker.folder / "out"
    report = records.prepare(maker.annotations([face], ("pose",), ["ibug"]), out)
    dataset = open_dataset(out)
    assert dataset.scheme.names == tuple(f"point_{i}" for i in range(5))
    assert dataset.scheme.mirror == (1, 0, 2, 4, 3)
    assert dataset.attribute_names == ("pose",)
    assert dataset.absent == ("ibug",)
    assert dataset.subsets == {"afw": 1}
    assert dataset.name == "five"
    assert dataset.fingerprint == report.fingerprint
    written = json.loads((out / records.REPORT).read_text())
    assert written["num_faces"] == {"train": 1}
    assert written["fingerprint"] == report.fingerprint


def test_fingerprint_follows_names_and_landmarks(maker):
    path = maker.image("a.jpg")
    face = maker.face(path)
    moved = dataclasses.replace(face, landmarks=face.landmarks + 0.01)
    renamed = dataclasses.replace(face, name="b.jpg")
    first, again, *others = [
        maker.dataset([f], name=str(i)).fingerprint
        for i, f in enumerate((face, face, moved, renamed))
    ]
    assert first == again
    assert len({first, *others}) == 3


def test_schemes_must_agree(maker):
    dataset = maker.dataset([maker.face(maker.image("a.jpg"))])
    require_scheme(dataset, dataset.scheme)
    with pytest.raises(
        InputError, match=r"5 points \(five\), but the checkpoint was trained for 98 \(wflw98\)"
    ):
        require_scheme(dataset, WFLW98)
    other = dataclasses.replace(dataset.scheme, names=("a", "b", "c", "d", "e"))
    with pytest.raises(InputError, match=r"5 \(five\) of another version of that scheme"):
        require_scheme(dataset, other)


def test_visibility_labels_are_kept(maker):
    path = maker.image("a.png")
    labels = np.array([0, 1, 2, -1, 0], np.int8)
    visible = labels != 2
    faces = [maker.face(path, visibility=labels, visible=visible), maker.face(path)]
    source = maker.dataset(faces).source("train")
    assert source[0]["visibility"].dtype == np.int8
    assert source[0]["visibility"].tolist() == labels.tolist()
    assert source[0]["visible"].tolist() == visible.tolist()
    assert source[1]["visibility"].tolist() == [-1] * 5
    source._records = [{k: v for k, v in source._records[0].items() if k != "visibility"}]
    assert source[0]["visibility"].tolist() == [-1] * 5


def test_datasets_of_before_there_was_a_normalizer_are_read(maker):
    source = maker.dataset([maker.face(maker.image("a.jpg"))]).source("train")
    # As TFDS gives them.
    source._records = [{k: v for k, v in source._records[0].items() if k != "normalizer"}]
    assert np.isnan(source[0]["normalizer"])


def test_opening_something_else_names_the_mend(tmp_path):
    with pytest.raises(InputError, match=r"no such folder; `lcgcn prepare`"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a prepared dataset; `lcgcn prepare`"):
        open_dataset(tmp_path)


def test_cut_and_full_size_images_give_the_same_crop(shared):
    cut = {face.name.split(".")[0]: face for face in w300.read(shared / "data/300w").faces}
    for face in w300.read(shared / "data/300w_fullsize").faces:
        crops = [
            crop_face(records.encode_face(version), 192)
            for version in (face, cut[face.name.split(".")[0]])
        ]
        first, second = (crop["image"].astype(float) for crop in crops)
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.995
        # And best so without a shift: points and pixels moved together.
        shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
        errors = [np.abs(first - np.roll(second, shift, (0, 1))).mean() for shift in shifts]
        assert np.argmin(errors) == 0
        np.testing.assert_allclose(crops[0]["landmarks"], crops[1]["landmarks"], atol=0.15)

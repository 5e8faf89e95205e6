"""Tests of `data.records`: datasets written by `lcgcn prepare`."""

import dataclasses
import errno
import hashlib
import json
from pathlib import Path

import pytest

from lcgcn_jax.data import records
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError


def truncated_to(fraction):
    return lambda encoded: encoded[: int(fraction * len(encoded))]


BROKEN = {
    "empty": (lambda encoded: b"", "empty"),
    "half": (truncated_to(0.5), "truncated"),
    "nearly whole": (truncated_to(0.99), "truncated"),
    "start only": (lambda encoded: encoded[:20], "truncated"),
    "words": (lambda encoded: b"<html>not found</html>", "cannot be decoded"),
    "no body": (lambda encoded: encoded[:12] + encoded[-14:], "truncated"),
}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("broken", BROKEN)
def test_corrupt_images_are_reported_and_skipped(maker, suffix, broken, capfd):
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
    capfd.readouterr()  # libjpeg and libpng print warnings to standard error


def test_deleted_image_is_reported(maker):
    path, good = maker.image("a.jpg"), maker.image("b.jpg")
    path.unlink()
    report = records.prepare(
        maker.annotations([maker.face(path), maker.face(good)]), maker.folder / "out"
    )
    assert "cannot be read" in report.bad[0].reason


def test_no_usable_face_raises_and_leaves_no_files(maker):
    path = maker.image("a.jpg")
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no face can be used, 1 are bad; the first: a.jpg"):
        maker.dataset([maker.face(path)])
    assert [p.name for p in maker.folder.iterdir()] == ["a.jpg"]
    with pytest.raises(InputError, match="no faces in the annotation files"):
        maker.dataset([])


def test_existing_dataset_requires_overwrite(maker):
    faces = [maker.face(maker.image("a.jpg"))]
    annotations, out = maker.annotations(faces), maker.folder / "out"
    out.mkdir()
    records.prepare(annotations, out)  # an empty folder is accepted
    with pytest.raises(InputError, match=r"out: already exists; .* --overwrite"):
        records.prepare(annotations, out)
    records.prepare(annotations, out, overwrite=True)
    assert open_dataset(out).num_faces == {"train": 1}
    assert sorted(p.name for p in maker.folder.iterdir()) == ["a.jpg", "out"]


def test_other_folders_are_never_overwritten(maker):
    faces = [maker.face(maker.image("a.jpg"))]
    out = maker.folder / "precious"
    out.mkdir()
    (out / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match="not empty and not a dataset"):
        records.prepare(maker.annotations(faces), out, overwrite=True)
    assert (out / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["scheme.yaml", "photos/a.jpg", ".notes"])
def test_other_files_in_a_dataset_are_never_deleted(maker, name):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "out"
    records.prepare(annotations, out)
    (out / ".DS_Store").touch()
    records.prepare(annotations, out, overwrite=True)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).touch()
    with pytest.raises(InputError, match=f"out/{name[:6]}.*: is not part of the dataset"):
        records.prepare(annotations, out, overwrite=True)
    assert (out / name).exists()


@pytest.mark.parametrize("moment", ["encoding", 0, 1, 2, 3])
def test_interruption_leaves_the_old_dataset(maker, monkeypatch, moment):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "out"
    records.prepare(annotations, out)
    before, replace, calls = open_dataset(out).fingerprint, Path.replace, []

    def interrupt(path, *target):
        calls.append(path)
        if len(calls) == moment + 1:  # moves of the old records and report, then of the new ones
            raise KeyboardInterrupt
        return replace(path, *target)

    def interrupt_at_once(*_):
        raise KeyboardInterrupt

    if moment == "encoding":
        monkeypatch.setattr(records, "encode_face", interrupt_at_once)
    else:
        monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        records.prepare(annotations, out, overwrite=True)
    assert open_dataset(out).fingerprint == before
    assert sorted(p.name for p in maker.folder.iterdir()) == ["a.jpg", "out"]
    assert sorted(p.name for p in out.iterdir()) == ["faces", "report.json"]


def test_existing_folder_stays_in_its_place(maker, monkeypatch):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "out"
    out.mkdir()
    (out / ".prepare-7.partial").mkdir()  # of a process that was killed
    inode = out.stat().st_ino
    monkeypatch.chdir(out)
    for overwrite in (False, True):
        records.prepare(annotations, Path(), overwrite=overwrite)
        assert out.stat().st_ino == inode, "the current folder, or a mount point"
        assert open_dataset(Path()).num_faces == {"train": 1}


def test_other_process_is_not_overwritten(maker):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "out"
    out.mkdir()

    def prepare_twice():
        with records.fresh_folder(out) as folder:
            records.write_records(annotations, folder)
            records.prepare(dataclasses.replace(annotations, kind="other"), maker.folder / "other")
            for path in (maker.folder / "other").iterdir():
                path.rename(out / path.name)

    with pytest.raises(InputError, match="another process has written it"):
        prepare_twice()
    assert open_dataset(out).name == "other"


def test_validation_is_a_fixed_part_of_train_by_group(maker):
    path = maker.image("a.png", 66, 64)
    faces = [
        maker.face(path, center=(33, 32), name=f"{group}_{i}", group=f"afw/{group}")
        for group in range(40)
        for i in range(2)
    ]
    dataset = maker.dataset(faces)
    held_out = [record["group"] for record in dataset.source("validation")]
    # The choice by SHA-256 must never change.
    assert held_out == [f"afw/{group}" for group in (19, 29, 35) for _ in range(2)]
    assert dataset.num_faces == {"train": 74, "validation": 6}
    everyone = [record["name"] for record in dataset.source("train+validation")]
    assert sorted(everyone) == sorted(face.name for face in faces)


def faces_of_groups(maker, groups, bad=()):
    """Faces, one per group and image; the images of `bad` groups are empty files."""
    faces = []
    for group in groups:
        path = maker.image(f"{group}.png", 66, 64, seed=len(faces))
        if group in bad:
            path.write_bytes(b"")
        faces.append(maker.face(path, center=(33, 32), name=group, group=group))
    return faces


@pytest.mark.parametrize("number", [2, 3, 5, 10, 14])
def test_small_dataset_has_a_validation_split(maker, number):
    faces = faces_of_groups(maker, [f"image_{i:04}.jpg" for i in range(1, number + 1)])
    dataset = maker.dataset(faces)
    assert dataset.num_faces["validation"] >= 1
    assert dataset.num_faces["train"] >= 1
    # The choice does not depend on the order of the faces.
    again = maker.dataset(faces[::-1], name="again")
    groups = [{r["group"] for r in d.source("validation")} for d in (dataset, again)]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("group", ["afw/0", "afw/19"])
def test_single_group_is_training_data_with_a_note(maker, group):
    faces = faces_of_groups(maker, [group])  # by its hash, afw/19 would be in validation
    report = records.prepare(maker.annotations(faces * 2), maker.folder / "out")
    assert report.num_faces == {"train": 2}
    (note,) = report.notes
    assert "no validation split: all training faces are of one image or group" in note
    assert "--config.data.validation_split=train" in note


def test_validation_needs_usable_faces(maker):
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


def test_dataset_without_train_has_no_validation_note(maker):
    faces = [dataclasses.replace(face, split="test") for face in faces_of_groups(maker, "ab")]
    report = records.prepare(maker.annotations(faces), maker.folder / "out")
    assert report.num_faces == {"test": 2}
    assert not report.notes


def test_images_in_two_splits_give_notes(maker):
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


WRITER_FAILURE = (
    'Failed to finalize writing of split "train": write() failed: No space left on device; writing '
    "faces-train.array_record-00000-of-00001; at byte 8192; Failed to close chunk_writer"
)


@pytest.mark.parametrize(
    "error", [RuntimeError(WRITER_FAILURE), OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.parametrize("exists", [False, True])
def test_full_disk_leaves_the_old_dataset(maker, monkeypatch, error, exists):
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


def test_other_errors_of_the_writer_propagate(maker, monkeypatch):
    def fail(self):
        raise RuntimeError("a bug")

    monkeypatch.setattr(records.Faces, "download_and_prepare", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        maker.dataset([maker.face(maker.image("a.jpg"))])


def test_fingerprint_depends_on_names_and_landmarks(maker):
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


def test_volume_with_system_folders_is_empty(maker):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "volume"
    (out / "lost+found").mkdir(parents=True)
    for overwrite in (False, True):
        records.prepare(annotations, out, overwrite=overwrite)
        assert sorted(p.name for p in out.iterdir()) == ["faces", "lost+found", "report.json"]


def test_dataset_of_a_process_killed_during_the_exchange_is_named(maker):
    annotations = maker.annotations([maker.face(maker.image("a.jpg"))])
    out = maker.folder / "out"
    records.prepare(annotations, out)
    replaced = out / ".prepare-01ab.replaced"
    replaced.mkdir()
    (out / "faces").rename(replaced / "faces")
    (out / "report.json").rename(replaced / "report.json")
    with pytest.raises(
        InputError, match=r"replaced: holds the earlier dataset; move its content to"
    ):
        records.prepare(annotations, out)

"""Tests of `data.dataset`: metadata, splits and random access."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from lcgcn_jax.data import dataset as dataset_module
from lcgcn_jax.data import records
from lcgcn_jax.data.dataset import open_dataset, open_datasets, require_scheme
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68, WFLW98
from lcgcn_jax.storage import as_path


def test_splits_and_unions_of_splits(maker):
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
        with pytest.raises(InputError, match=r"no split .*; available: train, common"):
            dataset.source(unknown)
    with pytest.raises(InputError, match="duplicate part"):
        dataset.source("full+common")


def test_source_is_a_sequence_that_pickles(maker):
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


def test_source_without_images_has_the_other_fields(maker):
    dataset = maker.dataset([maker.face(maker.image("a.jpg"))])
    (record,) = dataset.source("train")
    (metadata,) = dataset.source("train", with_images=False)
    assert record.keys() - metadata.keys() == {"image"}
    for name, value in metadata.items():
        np.testing.assert_array_equal(value, record[name])


def test_metadata_of_a_dataset(maker):
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


def test_require_scheme_raises_for_another_scheme(maker):
    dataset = maker.dataset([maker.face(maker.image("a.jpg"))])
    require_scheme(dataset, dataset.scheme)
    with pytest.raises(
        InputError, match=r"5 points \(five\), but the checkpoint was trained for 98 \(wflw98\)"
    ):
        require_scheme(dataset, WFLW98)
    other = dataclasses.replace(dataset.scheme, names=("a", "b", "c", "d", "e"))
    with pytest.raises(InputError, match=r"5 \(five\) of another version of that scheme"):
        require_scheme(dataset, other)


def test_visibility_labels_are_stored(maker):
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


def test_old_records_without_a_normalizer_have_nan(maker):
    source = maker.dataset([maker.face(maker.image("a.jpg"))]).source("train")
    source._records = [{k: v for k, v in source._records[0].items() if k != "normalizer"}]
    assert np.isnan(source[0]["normalizer"])


def test_opening_another_folder_raises(tmp_path):
    with pytest.raises(InputError, match=r"no such folder; prepare a dataset with `lcgcn prepare`"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"not a prepared dataset; prepare one with `lcgcn prepare`"
    ):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "file", ["features.json", "dataset_info.json", "metadata.json", "train", "test"]
)
@pytest.mark.parametrize("change", ["delete", "empty", "cut"])
def test_damaged_dataset_is_an_error_of_one_line(maker, file, change):
    path = maker.image("a.jpg")
    dataset = maker.dataset([maker.face(path, name=s, split=s) for s in ("train", "test")])
    pattern = file if file.endswith(".json") else f"faces-{file}.array_record*"
    (damaged,) = (dataset.path / records.RECORDS).glob(pattern)
    if change == "delete":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[: 100 if change == "cut" else 0])

    def use():
        opened = open_dataset(dataset.path)
        return [opened.source(split)[0] for split in opened.splits]

    with pytest.raises(
        InputError, match=r"copy or prepare the dataset again|not a prepared dataset"
    ) as error:
        use()
    assert str(dataset.path) in str(error.value)
    assert "\n" not in str(error.value)
    if change == "delete":  # before a training starts
        with pytest.raises(InputError):
            open_dataset(dataset.path)


def test_other_names_of_a_folder_are_the_same_dataset(maker, monkeypatch):
    dataset = maker.dataset([maker.face(maker.image("a.jpg"))])
    monkeypatch.chdir(dataset.path.parent)
    with pytest.raises(InputError, match="give each dataset folder only once"):
        open_datasets([dataset.path, Path(dataset.path.name)], dataset.scheme)


def test_offsets_of_a_dataset_in_a_bucket(monkeypatch):
    def open_nothing(folder):
        raise InputError(f"opened {folder}")

    monkeypatch.setattr(dataset_module, "open_dataset", open_nothing)
    folder = "gs://faces/merl"
    with pytest.raises(InputError, match=r"^opened gs://faces/merl$"):
        open_datasets([as_path(folder)], IBUG68, [(folder, "offsets.json")])

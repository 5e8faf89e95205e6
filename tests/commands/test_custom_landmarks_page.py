"""The commands of docs/tutorials/custom-landmarks.md, with fewer faces and a shorter training."""

import contextlib
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from page_commands import shortened_commands

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.prepare import parse_annotations
from lcgcn_jax.errors import InputError
from lcgcn_jax.training.metric_writer import read_metrics

CONFIGS = Path(__file__).parents[2] / "configs"
SMALLER = ["--config.data.image_size=64", "--config.train.batch_size=8"]


def commands_of(text):
    """Commands of a block, with fewer faces and steps."""
    for words in shortened_commands(text, faces=40, test_faces=16):
        yield words + (SMALLER if words[0] == "train" else [])


def write_coco():
    """Writes the COCO files of the page from its table."""
    Path("images").symlink_to("data/synthetic/official/WFLW_images")
    names = yaml.safe_load(Path("face29.yaml").read_text())["names"]
    with open("points.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for split in ("train", "test"):
        split_rows = [row for row in rows if row["split"] == split]
        faces = []
        for i, row in enumerate(split_rows):
            points = [(row[f"x_{name}"], row[f"y_{name}"]) for name in names]
            keypoints = [[float(x), float(y), 2] if x else [0, 0, 0] for x, y in points]
            faces.append({"id": i, "image_id": i, "keypoints": np.ravel(keypoints).tolist()})
        images = [{"id": i, "file_name": row["image"]} for i, row in enumerate(split_rows)]
        Path(f"{split}.json").write_text(json.dumps({"images": images, "annotations": faces}))


def run_blocks(folder, blocks):
    """Runs blocks of the page in a folder, in order."""
    with contextlib.chdir(folder):
        for info, text in blocks:
            kind, *name = info.split()
            if kind == "yaml":
                Path(*name).write_text(text)
            elif kind == "python":
                exec(compile(text, "custom-landmarks.md", "exec"), {})
            else:
                assert kind == "sh"
                for words in commands_of(text):
                    if words[:2] == ["prepare", "coco"]:
                        write_coco()
                    assert main(words) == 0, words


@pytest.fixture(scope="module")
def first_training(custom_landmarks_page):
    """Index of the first block that trains."""
    return next(i for i, (_, text) in enumerate(custom_landmarks_page) if "lcgcn train" in text)


@pytest.fixture(scope="module")
def walked(custom_landmarks_page, first_training, make_once):
    """Folder in which the blocks before the training were run, in order."""

    def fill(folder):
        folder.mkdir()
        (folder / "configs").symlink_to(CONFIGS)
        run_blocks(folder, custom_landmarks_page[:first_training])

    return make_once("custom_landmarks_page", fill)


@pytest.fixture(scope="module")
def trained(custom_landmarks_page, first_training, walked, make_once):
    """Copy of that folder in which the other blocks were run."""

    def fill(folder):
        shutil.copytree(walked, folder, symlinks=True)
        run_blocks(folder, custom_landmarks_page[first_training:])

    return make_once("custom_landmarks_page_trained", fill)


def test_table_becomes_faces_with_missing_points(walked):
    dataset = open_dataset(walked / "data/face29")
    assert dataset.name == "csv"
    assert dataset.scheme.num_landmarks == 29
    assert sum(dataset.num_faces.values()) == 56
    assert dataset.num_faces["test"] == 16
    for record in dataset.source("train+validation+test"):
        assert record["visible"].sum() == 26
        assert (np.isnan(record["landmarks"]).any(axis=1) == ~record["visible"]).all()


def test_coco_and_csv_give_the_same_dataset(walked):
    table, coco = (open_dataset(walked / "data" / name) for name in ("face29", "own"))
    assert coco.name == "coco"
    assert coco.num_faces == table.num_faces
    for split in table.splits:
        for one, other in zip(table.source(split), coco.source(split), strict=True):
            np.testing.assert_array_equal(one["landmarks"], other["landmarks"])
            assert one["group"] == other["group"]
            assert one["image"] == other["image"]


def test_mirror_pairs_are_symmetric_in_the_mean_face(walked):
    """Mirror partners lie on opposite sides of the mean face, at the same height."""
    dataset = open_dataset(walked / "data/face29")
    points = np.ma.masked_invalid([r["landmarks"] - r["box"][:2] for r in dataset.source("train")])
    mean = points.mean(axis=0).data
    mirror = np.array(dataset.scheme.mirror)
    middle = mean[mirror == np.arange(29), 0].mean()
    size = np.ptp(mean, axis=0).max()
    np.testing.assert_allclose(2 * middle - mean[mirror, 0], mean[:, 0], atol=0.15 * size)
    np.testing.assert_allclose(mean[mirror, 1], mean[:, 1], atol=0.1 * size)


@pytest.mark.slow
def test_model_is_trained_and_evaluated(trained):
    result = json.loads((trained / "runs/face29.json").read_text())
    assert result["num_faces"] + result["unmeasured"] == 16
    assert result["unmeasured"] > 0
    assert np.isfinite(result["stages"]["graph"]["nme"])
    figures = {k: v for row in read_metrics(trained / "runs/face29") for k, v in row.items()}
    for name in ("train/focal", "train/l1", "train/gradient_norm", "validation/graph_nme"):
        assert np.isfinite(figures[name])
    assert (trained / "runs/face29_plots/stages.png").is_file()
    (path, *_) = sorted((trained / "runs/face29_predictions").glob("*.json"))
    (face,) = json.loads(path.read_text())["faces"]
    assert np.shape(face["landmarks"]) == (29, 2)


@pytest.mark.slow
def test_dataset_with_another_scheme_is_an_error(error_line, trained, synthetic98):
    error = error_line(
        "eval", "--model", trained / "runs/face29", "--data", synthetic98, "--split", "test"
    )
    assert f"{synthetic98}: 98 points (wflw98), but the checkpoint was trained for 29" in error


def test_changed_scheme_is_an_error(error_line, walked, tmp_path, monkeypatch):
    fields = yaml.safe_load((walked / "face29.yaml").read_text())
    (tmp_path / "face29.yaml").write_text(yaml.safe_dump(fields | {"normalizer": "box"}))
    error = error_line(
        "train", "--config", "demo:small", "--workdir", tmp_path / "run",
        f"--config.scheme={tmp_path / 'face29.yaml'}", f"--config.data.dir={walked}/data/face29",
    )  # fmt: skip
    assert "face29.yaml: the scheme has changed since" in error
    assert not (tmp_path / "run").exists()


def test_bad_rows_are_listed_and_the_exit_code_is_one(walked, tmp_path, capsys):
    lines = (walked / "points.csv").read_text().splitlines()
    lines[2] = lines[2].replace("--Synthetic/", "--Synthetic/../../")
    (tmp_path / "points.csv").write_text("\n".join(lines) + "\n")
    words = ["--src", walked / "data/synthetic/official/WFLW_images", "--out", tmp_path / "out"]
    words += ["--annotations", tmp_path / "points.csv", "--scheme", walked / "face29.yaml"]
    assert main(["prepare", "csv", *map(str, words)]) == 1
    output = capsys.readouterr().out
    assert "bad: points.csv:3: the image path " in output
    assert "csv: 55 faces" in output


def test_scheme_without_mirror_pairs_is_noted(walked, tmp_path, capsys):
    fields = yaml.safe_load((walked / "face29.yaml").read_text())
    del fields["mirror_pairs"]
    (tmp_path / "face29.yaml").write_text(yaml.safe_dump(fields))
    words = ["--src", walked / "data/synthetic/official/WFLW_images", "--out", tmp_path / "out"]
    words += ["--annotations", walked / "points.csv", "--scheme", tmp_path / "face29.yaml"]
    assert main(["prepare", "csv", *map(str, words)]) == 0
    assert "note: face29 has no mirror pairs" in capsys.readouterr().out


def test_annotations_in_the_output_folder_are_an_error(error_line, walked, tmp_path):
    out = tmp_path / "out"
    words = ["--src", walked / "data/synthetic/official/WFLW_images", "--out", out]
    words += ["--scheme", walked / "face29.yaml", "--overwrite", "--annotations"]
    assert main(["prepare", "csv", *map(str, words), str(walked / "points.csv")]) == 0
    (out / "points.csv").write_bytes((walked / "points.csv").read_bytes())
    assert "--annotations lies within it" in error_line(
        "prepare", "csv", *words, out / "points.csv"
    )


def test_annotations_are_parsed_by_split():
    assert parse_annotations(["a=b.csv", "c.csv"]) == {"": [Path("a=b.csv"), Path("c.csv")]}
    files = parse_annotations(["train=a.csv", "test=b=c.csv", "train=d.csv"])
    assert files == {"train": [Path("a.csv"), Path("d.csv")], "test": [Path("b=c.csv")]}


@pytest.mark.parametrize("texts", [["a", "test=b"], ["test=b", "a"]])
def test_annotation_files_with_and_without_a_split_are_an_error(texts):
    with pytest.raises(InputError, match="some files have a split and others not; give train=FILE"):
        parse_annotations(texts)


@pytest.mark.parametrize("texts", [["a", "a"], ["test=a"] * 3, ["train=a", "test=a"]])
def test_repeated_annotation_file_is_an_error(texts):
    message = "a: given more than once"
    with pytest.raises(InputError, match=message):
        parse_annotations(texts)


def test_sample_of_coco_is_prepared(shared, tmp_path, capsys):
    src = shared / "data/coco_sample"
    words = ["--src", src, "--annotations", src / "annotations.json", "--out", tmp_path / "out"]
    assert main(["prepare", "coco", *map(str, words), "--scheme=ibug68", "--count-from=1"]) == 0
    assert "coco: 2 faces\n" in capsys.readouterr().out

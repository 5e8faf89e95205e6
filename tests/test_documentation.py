"""README, documentation and examples: commands parse, links resolve, and code runs."""

import contextlib
import csv
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import lcgcn_jax as lc
from lcgcn_jax.commands.main import main
from lcgcn_jax.commands.parsing import COMMANDS, RESEARCH, parse_arguments
from lcgcn_jax.training.config import config_names

ROOT = Path(__file__).parents[1]
# tests/commands/test_custom_landmarks_page.py runs the commands of custom-landmarks.md.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch/README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PHOTO = ROOT / "docs/images/photo.jpg"


def name_of(path):
    return str(path.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page, language):
    """Code blocks of a page in a language."""
    return re.findall(rf"^```{language}\b.*\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)


def anchors(page):
    """Anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w-]", "", text.lower().replace(" ", "-")) for text in headings}


def commands(page):
    """Arguments of each `lcgcn` command in the shell blocks of a page."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&", line):
                words = shlex.split(part, comments=True)
                if words[:1] == ["lcgcn"]:
                    yield [word for word in words[1:] if word not in ("...", "[...]")]


@each_page
def test_commands_parse(page):
    for words in commands(page):
        args = parse_arguments(words)
        assert all(word.startswith("--config.") for word in args.overrides), words
        config = getattr(args, "config", None)
        if config is not None:
            stem = Path(config.partition(":")[0]).stem
            assert stem in config_names(), words


@each_page
def test_links_and_images_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target or Path(path).name in ("cli.md", "config.md"):
            continue  # the two pages are generated when the site is built
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")


def test_front_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "10.1109/ACCESS.2022.3200037" in text
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (ROOT / image).stat().st_size < 200_000
    assert all(f"`{name}`" in text for name in lc.list_models())


def test_citation():
    fields = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert fields["version"] == lc.__version__
    (paper,) = fields["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Nguyen", "Pham", "Li", "Wang", "Dang", "Song", "Moon",
    ]  # fmt: skip


@pytest.mark.parametrize("path", [".github/ISSUE_TEMPLATE", ".pre-commit-config.yaml"])
def test_yaml_files_load(path):
    files = sorted((ROOT / path).glob("*.yml")) if (ROOT / path).is_dir() else [ROOT / path]
    assert files
    assert all(isinstance(yaml.safe_load(file.read_text()), dict) for file in files)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=name_of)
def test_examples_use_the_public_api(example):
    imports = re.findall(r"^\s*(?:from|import) (lcgcn_jax.*)$", example.read_text(), re.MULTILINE)
    assert imports == ["lcgcn_jax as lc"]
    for name in re.findall(r"\blc\.(\w+)", example.read_text()):
        assert name in lc.__all__


@pytest.fixture
def folder(tmp_path, shared, monkeypatch):
    """Working folder with the images that pages refer to, and the face detector in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = tmp_path / "cache/lcgcn_jax/models"
    models.mkdir(parents=True)
    detector = shared / "models/face_detection_yunet_2023mar.onnx"
    (models / detector.name).symlink_to(detector)
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/index.md",
        "docs/tutorials/first-prediction.md",
        "docs/how-to/face-geometry.md",
        "docs/how-to/server.md",
    ],
)
def test_prediction_pages_run(page, folder):
    """The commands and code that need only an image run in order."""
    for words in commands(ROOT / page):
        if words[0] == "predict" and len(words) == 2:
            assert main(words) == 0
            assert (folder / "predictions/photo.json").is_file()
            assert (folder / "predictions/photo.png").is_file()
    scope = {"__name__": "page"}  # not __main__, so that the example of a pool does not run
    for block in blocks(ROOT / page, "python"):
        exec(compile(block, page, "exec"), scope)
    (face,) = scope["faces"]
    assert face.landmarks.shape == (68, 2)
    assert face.score is None or face.score > 0.9
    if "landmarks_of" in scope:
        assert len(json.loads(scope["landmarks_of"]("photo.jpg"))["faces"]) == 1
        assert "No such" in json.loads(scope["landmarks_of"]("missing.jpg"))["error"]


@pytest.mark.slow
def test_training_page_runs(synthetic68, tmp_path):
    (block,) = [b for b in blocks(ROOT / "docs/tutorials/training.md", "python") if "lc.train" in b]
    reduction = "config.model.heatmap.arch = 'tiny'; config.data.image_size = 64\n"
    reduction += (
        "config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2\n"
    )
    block = block.replace("best =", reduction + "best =")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/w300").symlink_to(synthetic68)
    scope = {}
    with contextlib.chdir(tmp_path):
        exec(compile(block, "training.md", "exec"), scope)
    assert (tmp_path / "runs/w300_small/best").is_dir()


@pytest.fixture
def run_example(monkeypatch):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")

    return run


@pytest.mark.slow
def test_image_example(run_example, folder, capsys):
    run_example("predict_image.py", "photo.jpg", "overlay.png")
    assert "nose tip" in capsys.readouterr().out
    overlay, image = cv2.imread("overlay.png"), cv2.imread("photo.jpg")
    assert overlay.shape == image.shape
    assert (overlay != image).any()


@pytest.mark.slow
def test_video_example(run_example, folder, capsys):
    image = cv2.imread("photo.jpg")
    size = image.shape[1], image.shape[0]
    writer = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, size)
    for _ in range(9):
        writer.write(image)
    writer.release()
    run_example("predict_video.py", "clip.mp4", "annotated.mp4")
    assert capsys.readouterr().out.count(": faces [0]\n") == 9
    assert cv2.VideoCapture("annotated.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == 9


@pytest.mark.slow
def test_fine_tuning_example(run_example, hrnet_run, synthetic98, tmp_path, capsys):
    from lcgcn_jax.data.dataset import open_dataset

    images = tmp_path / "images"
    images.mkdir()
    rows = [["image", *(f"{axis}_{i}" for i in range(98) for axis in "xy")]]
    source = open_dataset(synthetic98).source("train")
    for number in range(8):
        record = source[number]
        (images / f"{number}.jpg").write_bytes(bytes(record["image"]))
        rows.append([f"{number}.jpg", *np.ravel(record["landmarks"]).tolist()])
    with (tmp_path / "landmarks.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with jax_defaults():
        run_example(
            "finetune.py", images, tmp_path / "landmarks.csv", tmp_path / "tuned",
            "--model", hrnet_run, "--steps", "2",
        )  # fmt: skip
    assert "step 1: mean error" in capsys.readouterr().out
    assert lc.load_model(tmp_path / "tuned").image_size == 64


@contextlib.contextmanager
def jax_defaults():
    """Default promotion rules of JAX, which optax needs and the other tests forbid."""
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_custom_heatmap_model_example(run_example, synthetic98, tmp_path, capsys, monkeypatch):
    from lcgcn_jax.models import registry

    monkeypatch.setattr(registry, "_HEATMAP_MODELS", dict(registry._HEATMAP_MODELS))
    with jax_defaults():
        run_example("custom_heatmap_model.py", synthetic98, tmp_path / "run", "--steps", "2")
    assert "NME %" in capsys.readouterr().out


@pytest.mark.slow
def test_export_example(run_example, hrnet_run, tmp_path, capsys):
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package)
    run_example("export_onnx.py", tmp_path / "face.onnx", "--model", hrnet_run)
    assert "landmarks (2, 98, 2)" in capsys.readouterr().out


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path):
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("needs: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    build = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert build.returncode == 0, build.stderr
    api = (tmp_path / "site/reference/api.html").read_text()
    documented = set(lc.__all__) - {"IBUG68", "WFLW98", "load"}
    assert not [
        name for name in documented if f'title="{name}"' not in api and f">{name}<" not in api
    ]
    cli = (tmp_path / "site/reference/cli.html").read_text()
    assert all(f"lcgcn {name}" in cli for name in COMMANDS)
    assert all(f"lcgcn research {name}" in cli for name in RESEARCH)
    assert "train.batch_size" in (tmp_path / "site/reference/config.html").read_text()

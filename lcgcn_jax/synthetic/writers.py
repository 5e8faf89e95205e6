"""Writers of synthetic faces in the official file layouts of WFLW and 300W."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lcgcn_jax.data.formats.pts import format_pts
from lcgcn_jax.errors import InputError, require_absent
from lcgcn_jax.geometry import box_of_landmarks
from lcgcn_jax.landmarks import IBUG68, WFLW98, LandmarkScheme
from lcgcn_jax.synthetic.drawing import SyntheticFace, draw_face
from lcgcn_jax.synthetic.traits import ATTRIBUTES

_300W_TRAIN = ("afw", "helen/trainset", "lfpw/trainset")
_300W_TEST = ("helen/testset", "lfpw/testset", "ibug", "300W/01_Indoor", "300W/02_Outdoor")
_300W_PNG = ("lfpw/trainset", "lfpw/testset", "300W/01_Indoor")


def write_wflw(out: Path, *, num_train: int, num_test: int, seed: int = 0) -> None:
    """Write faces with 98 landmarks in the layout of WFLW.

    Args:
      out: folder for `WFLW_images/` and `WFLW_annotations/`.
      num_train: number of faces in the training list.
      num_test: number of faces in the test list; the lists are disjoint.

    Raises:
      InputError: the folder already exists.
    """
    out = _new_folder(out)
    names = [
        f"{i % 3}--Synthetic/{i % 3}_Synthetic_{i:06d}.jpg" for i in range(num_train + num_test)
    ]
    faces = _draw_all([out / "WFLW_images" / name for name in names], seed, WFLW98)
    lines = [_wflw_line(face, name) for face, name in zip(faces, names, strict=True)]
    folder = out / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    folder.mkdir(parents=True)
    for split, part in (("train", lines[:num_train]), ("test", lines[num_train:])):
        text = "".join(f"{line}\n" for line in part)
        (folder / f"list_98pt_rect_attr_{split}.txt").write_text(text, encoding="utf-8")


def write_300w(out: Path, *, num_train: int, num_test: int, seed: int = 0) -> None:
    """Write faces with 68 landmarks in the layout of 300W.

    Args:
      out: folder for `afw/`, `helen/`, `lfpw/`, `ibug/` and `300W/`.
      num_train: number of faces in `afw` and the two `trainset` folders together.
      num_test: number of faces in the two `testset` folders, `ibug` and `300W` together.

    Raises:
      InputError: the folder already exists.
    """
    out = _new_folder(out)
    folders = [_300W_TRAIN[i % len(_300W_TRAIN)] for i in range(num_train)]
    folders += [_300W_TEST[i % len(_300W_TEST)] for i in range(num_test)]
    paths = [
        out / folder / f"synthetic_{i:06d}.{'png' if folder in _300W_PNG else 'jpg'}"
        for i, folder in enumerate(folders)
    ]
    faces = _draw_all(paths, seed, IBUG68)
    for path, folder, face in zip(paths, folders, faces, strict=True):
        text = format_pts(face.landmarks, header=folder.startswith("lfpw"))
        path.with_suffix(".pts").write_text(text, encoding="utf-8")


def _new_folder(out: Path) -> Path:
    out = Path(out)
    require_absent(out)
    out.mkdir(parents=True)
    return out


def _draw_all(paths: Sequence[Path], seed: int, scheme: LandmarkScheme) -> list[SyntheticFace]:
    """Draw one face per path and save its image; the returned faces have empty images."""
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True)

    def draw(index: int) -> SyntheticFace:
        face = draw_face(seed * 1_000_000 + index, scheme)
        path, bgr = paths[index], cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR)
        options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
        if not cv2.imwrite(str(path), bgr, options):
            raise InputError(f"{path}: cannot write the image; check the free disk space")
        return dataclasses.replace(face, image=np.zeros((0, 0, 3), np.uint8))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(draw, range(len(paths))))


def _wflw_line(face: SyntheticFace, name: str) -> str:
    """Line of a WFLW list: landmarks, their bounding box, attributes, path."""
    box = box_of_landmarks(face.landmarks)
    fields = [f"{value:.6f}" for value in face.landmarks.ravel()]
    fields += [str(int(value)) for value in np.round(box)]
    fields += [str(int(face.attributes[attribute])) for attribute in ATTRIBUTES]
    return " ".join([*fields, name])

"""`lcgcn predict`: photographs in, landmarks as JSON and overlays out."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lcgcn_jax import visualize
from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference import Face, LandmarkModel, load
from lcgcn_jax.photographs import read_photograph


def add_parser(subparsers) -> None:
    """Adds `predict` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "predict",
        help="landmarks of the faces in photographs",
        description="Finds the landmarks of faces whose boxes are given, and writes OUT/NAME.json "
        "and OUT/NAME.png, all in the photograph's pixels.",
        epilog="example: lcgcn predict --model runs/small photo.jpg --box 120,80,260,240",
    )
    parser.add_argument("--model", required=True, help="bundle or training workdir")
    parser.add_argument("image", type=Path, help="JPEG or PNG file")
    parser.add_argument(
        "--box",
        action="append",
        required=True,
        metavar="X0,Y0,X1,Y1",
        help="box around a face, chin to brows, in pixels; once for each face",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder for the results (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predicts and writes; nothing is written where something is wrong.

    Raises:
      InputError: the model, the photograph or a box cannot be used.
    """
    outputs = [args.out / f"{args.image.stem}{suffix}" for suffix in (".json", ".png")]
    for path in outputs:
        if path.exists() and not args.overwrite:
            raise InputError(f"{path}: already exists; choose another --out or give --overwrite")
    boxes = [parse_box(text) for text in args.box]
    image = read_photograph(args.image)
    use_compilation_cache()
    model = load(args.model)
    try:
        faces = model.predict(image, boxes)
    except InputError as error:
        raise InputError(f"{args.image}: {error}") from error
    result = describe(args.image, image, faces)
    args.out.mkdir(parents=True, exist_ok=True)
    outputs[0].write_text(json.dumps(result) + "\n", encoding="utf-8")
    visualize.save_image(outputs[1], overlay(image, faces, model))
    print(f"{args.image}: {len(faces)} faces; {outputs[0]}, {outputs[1]}")
    return 0


def parse_box(text: str) -> list[float]:
    """A box from `x0,y0,x1,y1`.

    Raises:
      InputError: it is not four numbers.
    """
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4:
        raise InputError(f"--box {text}: a box is four numbers x0,y0,x1,y1 in pixels")
    return box


def describe(path: Path, image: np.ndarray, faces: list[Face]) -> dict[str, Any]:
    """The JSON of a photograph; the design's section 6 fixes its form."""
    return {
        "image": str(path),
        "width": image.shape[1],
        "height": image.shape[0],
        "faces": [
            {
                "box": face.box.tolist(),
                "landmarks": np.round(face.landmarks, 3).tolist(),
                "confidence": np.round(face.confidence.astype(float), 4).tolist(),
                "heatmap_landmarks": np.round(face.heatmap_landmarks, 3).tolist(),
            }
            for face in faces
        ],
    }


def overlay(image: np.ndarray, faces: list[Face], model: LandmarkModel) -> np.ndarray:
    """The photograph with all faces' landmarks, sized by the face."""
    for face in faces:
        side = float(max(face.box[2:] - face.box[:2]))
        image = visualize.draw_landmarks(
            image, face.landmarks, model.scheme, radius=max(1.0, side / 110)
        )
    return image

"""Sources of the face boxes of `lcgcn predict`: an option, a file, or whole images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lcgcn_jax.data.formats.parsing import to_float
from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import BOX_FORMATS, box_of_crop
from lcgcn_jax.inference.box_files import BoxFile
from lcgcn_jax.inference.image_inputs import BoxInput
from lcgcn_jax.inference.sources import InputFile

BoxSource = Callable[[Path, np.ndarray], Sequence[BoxInput]]
"""Path of an image and its pixels -> its face boxes."""


def find_box_source(
    inputs: Sequence[InputFile],
    *,
    boxes: Sequence[str] | None = None,
    file: Path | None = None,
    whole_image: bool = False,
    box_format: str = "xyxy",
    min_score: float | None = None,
) -> tuple[BoxSource | None, str]:
    """Find the source of the face boxes of inputs.

    Args:
      boxes: texts of the boxes of a single input.
      file: file of boxes (`box_files.BoxFile`).
      whole_image: whether each image is the crop of one face.
      box_format: format of the boxes, one of `geometry.BOX_FORMATS`.
      min_score: minimum score of a detected face, which does not apply to given boxes.

    Returns:
      The source, None for boxes of the face detector; and a warning about unused boxes, which may be empty.

    Raises:
      InputError: a box or the file cannot be used, or an option does not apply.
    """
    if min_score is not None and (boxes is not None or file is not None or whole_image):
        raise InputError("--min-score applies to detected faces; leave it out, or the boxes")
    if boxes is not None:
        if len(inputs) > 1:
            raise InputError(f"--box needs a single input, got {len(inputs)}; use --boxes")
        parsed = [parse_box(text, box_format) for text in boxes]
        return lambda path, image: parsed, ""
    if file is not None:
        box_file = BoxFile(file, box_format)
        box_file.assign(inputs)
        return lambda path, image: box_file.of(path), box_file.describe_unused()
    if box_format != "xyxy":
        raise InputError("--box-format applies to --box and --boxes; give one of them")
    return whole_image_box if whole_image else None, ""


def whole_image_box(path: Path, image: np.ndarray) -> Sequence[BoxInput]:
    """Box source for images that are face crops."""
    return [box_of_crop(image.shape[1], image.shape[0])]


def parse_box(text: str, box_format: str = "xyxy") -> list[float]:
    """Parse a face box, for example `x0,y0,x1,y1`.

    Raises:
      InputError: the text is not four numbers.
    """
    try:
        box = [to_float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4:
        raise InputError(f"--box {text}: a box is four numbers {BOX_FORMATS[box_format]} in pixels")
    return box

"""Image files of a dataset: reading, EXIF orientation of their annotations, and cropping."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from lcgcn_jax import geometry, image_io
from lcgcn_jax.data.annotations import FaceAnnotation

_JPEG_QUALITY = 95
_PNG_8_BIT_RGB = b"\x08\x02"  # bit depth and color type in the header of a PNG file


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """Image file of a dataset.

    Attributes:
      encoded: content of the file.
      header: format, size and orientation.
    """

    encoded: bytes
    header: image_io.ImageHeader

    @functools.cached_property
    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of the upright image, in RGB.

        Raises:
          ValueError: the file is not a complete image.
        """
        return image_io.decode_image(self.encoded)

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of the file."""
        return hashlib.sha256(self.encoded).digest()

    def encode_crop(self, x0: int, y0: int, x1: int, y1: int) -> bytes:
        """Encode a crop of the upright image as JPEG if the file is a JPEG, else as PNG.

        The file of a whole image that is stored upright is copied without recompression. Data after
        the image, such as the video of a motion photo, are dropped.
        """
        if (x1 - x0, y1 - y0) == self.pixels.shape[1::-1] and self._can_be_copied:
            return self.encoded[: image_io.image_end(self.encoded)]
        bgr = np.ascontiguousarray(self.pixels[y0:y1, x0:x1, ::-1])
        if self.header.format == "JPEG":
            return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1].tobytes()
        return cv2.imencode(".png", bgr)[1].tobytes()

    @property
    def _can_be_copied(self) -> bool:
        is_plain_png = self.header.format == "PNG" and self.encoded[24:26] == _PNG_8_BIT_RGB
        return self.header.orientation == 1 and (self.header.format == "JPEG" or is_plain_png)


# Consecutive faces often lie on the same image, which is read once.
@functools.lru_cache(maxsize=1)
def read_source_image(path: Path) -> SourceImage:
    """Read an image file; its pixels are decoded when they are used.

    Raises:
      ValueError: the file cannot be read, or is not a complete image.
    """
    if path.exists() and not path.is_file():  # reading a pipe or device may never end
        raise ValueError(f"the image {path.name!r} is not a file")
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the image cannot be read: {error.strerror}") from error
    image_io.check_complete(encoded)
    return SourceImage(encoded, image_io.read_header(encoded))


class SizeMismatch(ValueError):
    """The size of an image differs from the size stated in the annotations."""


def in_upright_pixels(
    face: FaceAnnotation,
    header: image_io.ImageHeader,
    mirror: Sequence[int],
    *,
    stored_pixels: bool = False,
) -> FaceAnnotation:
    """Convert the landmarks and the box of a face to pixels of the upright image.

    If the stated size matches only the stored or only the upright size, it decides which pixels the
    annotations refer to. The mirror permutation is applied to landmarks of images that are stored mirrored.

    Args:
      mirror: the permutation of a scheme's landmarks in a mirrored image.
      stored_pixels: whether annotations without a stated size refer to the image as stored.

    Raises:
      SizeMismatch: the stated size is not the size of the image.
    """
    if face.stated_size not in (None, header.stored_size if stored_pixels else header.size):
        if stored_pixels or face.stated_size != header.stored_size:
            raise SizeMismatch(
                _size_mismatch(face.stated_size, header, stored_pixels=stored_pixels)
            )
        stored_pixels = True
    if not stored_pixels or header.orientation == 1:
        return face
    affine = geometry.upright_transform(header.orientation, *header.stored_size)
    landmarks, visible, box = face.landmarks, face.visible, face.provided_box
    labels = face.visibility
    if geometry.is_mirrored(header.orientation):
        order = list(mirror)
        landmarks, visible = landmarks[order], visible[order]
        labels = None if labels is None else labels[order]
    if box is not None:
        corners = geometry.transform_points(affine, box.reshape(2, 2))
        box = np.sort(corners, axis=0).reshape(4)
    landmarks = geometry.transform_points(affine, landmarks)
    return dataclasses.replace(
        face, landmarks=landmarks, visible=visible, provided_box=box, visibility=labels
    )


def _size_mismatch(
    stated: tuple[int, int], header: image_io.ImageHeader, *, stored_pixels: bool
) -> str:
    sizes = " x ".join(map(str, header.size))
    if header.stored_size != header.size:
        sizes += f" upright and {' x '.join(map(str, header.stored_size))} as stored"
    message = f"annotated at {' x '.join(map(str, stated))}, but the image is {sizes}"
    if stored_pixels and stated == header.size:
        return f"{message}; leave out --stored-pixels"
    return f"{message}; scale the points to the image, or use the images that were annotated"

"""Notes of `lcgcn prepare` about images: EXIF orientations, and images in several splits."""

import collections
import itertools
from pathlib import Path

from lcgcn_jax.data.annotations import SPLITS, FaceAnnotation
from lcgcn_jax.data.source_images import read_source_image

_MAX_NAMES = 5


class ImageNotes:
    """Collects the images of each split, and their orientations.

    Args:
      stored_pixels: whether annotations without a stated size refer to the image as stored.
    """

    def __init__(self, *, stored_pixels: bool):
        self._stored_pixels = stored_pixels
        # SHA-256 of an image -> split -> paths.
        self._paths: dict[bytes, dict[str, list[Path]]] = collections.defaultdict(
            lambda: collections.defaultdict(list)
        )
        self._rotated: set[Path] = set()
        self._stated_as_stored: set[Path] = set()

    def add(self, split: str, face: FaceAnnotation) -> None:
        """Add the image of a face."""
        path, image = face.image_path, read_source_image(face.image_path)
        paths = self._paths[image.digest][split]
        if path not in paths:
            paths.append(path)
        if image.header.orientation != 1:
            self._rotated.add(path)
            if not self._stored_pixels and face.stated_size not in (None, image.header.size):
                self._stated_as_stored.add(path)

    def notes(self) -> list[str]:
        """Notes for the user, one line each."""
        notes = []
        if count := len(self._rotated - self._stated_as_stored):
            if self._stored_pixels:
                rule = "image and points are turned upright together (--stored-pixels)"
            else:
                rule = (
                    "points refer to the image as shown upright; for points in the pixels as stored, "
                    "add --stored-pixels"
                )
            notes.append(
                f"{count:,} {'image has' if count == 1 else 'images have'} an EXIF orientation: {rule}"
            )
        if count := len(self._stated_as_stored):
            notes.append(
                f"{count:,} {'image is' if count == 1 else 'images are'} annotated in pixels as stored, by "
                "the stated width and height: image and points are turned upright together"
            )
        for first, second in itertools.combinations(SPLITS, 2):
            if first in ("train", "validation"):
                notes += self._note_of_shared_images(first, second)
        return notes

    def _note_of_shared_images(self, first: str, second: str) -> list[str]:
        shared = [
            (splits[first][0], splits[second][0])
            for splits in self._paths.values()
            if first in splits and second in splits
        ]
        if not shared:
            return []
        names = [
            one.name if one.name == other.name else f"{one.name} = {other.name}"
            for one, other in shared
        ]
        more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
        images = "1 image is" if len(names) == 1 else f"{len(names):,} images are"
        return [
            f"{images} in {first} and in {second}, so errors on {second} come out too low: "
            f"{', '.join(names[:_MAX_NAMES])}{more}"
        ]

import cv2
import numpy as np
import pytest

from lcgcn_jax.data import records
from lcgcn_jax.data.annotations import AnnotationList, FaceAnnotation
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.landmarks import LandmarkScheme

FIVE = LandmarkScheme.from_dict(
    {"name": "five", "num_landmarks": 5, "mirror_pairs": [[0, 1], [3, 4]], "normalizer": [0, 1]}
)
SHAPE = np.array([[-0.5, -0.5], [0.5, -0.5], [0.0, 0.0], [-0.4, 0.5], [0.4, 0.5]])


class FaceMaker:
    """Writer of small images with faces of five points."""

    def __init__(self, folder):
        self.folder = folder

    def image(self, name, width=90, height=80, seed=0):
        """Write an image of smooth noise and return its path."""
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 2))
        return path

    def face(self, path, *, center=(45.25, 40.5), side=32.0, **fields):
        """Annotation whose box has this center and longer side."""
        defaults = {
            "name": path.name,
            "subset": "",
            "split": "train",
            "group": "one",
            "image_path": path,
            "landmarks": np.array(center) + side * SHAPE,
            "visible": np.ones(5, bool),
            "provided_box": None,
            "attributes": (),
        }
        return FaceAnnotation(**(defaults | fields))

    def annotations(self, faces, attribute_names=(), absent=()):
        """The faces as returned by a reader."""
        return AnnotationList("five", FIVE, attribute_names, list(faces), [], list(absent))

    def dataset(self, faces, name="dataset"):
        """Dataset with these faces."""
        return self.prepared(self.annotations(faces), name)

    def prepared(self, annotations, name="dataset"):
        """Dataset with these annotations."""
        out = self.folder / name
        records.prepare(annotations, out)
        return open_dataset(out)


@pytest.fixture
def maker(tmp_path):
    return FaceMaker(tmp_path)


@pytest.fixture(scope="session")
def face_maker_of():
    """`FaceMaker` for fixtures with a larger scope."""
    return FaceMaker

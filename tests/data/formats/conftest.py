import numpy as np
import pytest

from lcgcn_jax.landmarks import LandmarkScheme

NAMES = ("left", "right", "tip", "chin")
POINTS = np.array([[15.5, 20.0], [45.0, 21.0], [30.0, 35.25], [31.0, 50.0]])
SCHEME = LandmarkScheme.from_dict(
    {"name": "four", "names": NAMES, "mirror_pairs": [["left", "right"]], "normalizer": [0, 1]}
)


@pytest.fixture
def images(tmp_path):
    """Folder of images; readers only check that they exist."""
    for name in ("a.jpg", "one/b.jpg", "one/c d.jpg", "two/p.jpg", "three/p.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8")
    (tmp_path / "outside.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "images/link.jpg").symlink_to(tmp_path / "outside.jpg")
    return tmp_path / "images"


@pytest.fixture
def four_points():
    """Scheme with four landmarks, and their locations by name."""
    return SCHEME, dict(zip(NAMES, POINTS.tolist(), strict=True))

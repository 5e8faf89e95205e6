import operator

import numpy as np

from lcgcn_jax.inference.face import Face
from lcgcn_jax.landmarks import IBUG68


def make_face(**fields):
    points = np.zeros((68, 2))
    return Face(np.zeros(4), points, np.zeros(68), points, **fields)


def test_faces_can_be_compared_and_hashed():
    faces = [make_face(), make_face()]
    assert faces[0] != faces[1]
    assert faces.index(faces[1]) == 1
    assert len(set(faces)) == 2


def test_names_are_those_of_the_scheme():
    assert make_face(scheme=IBUG68).names == IBUG68.names
    assert make_face().names == ()


def test_deprecated_name_of_the_error_in_percent():
    face = make_face(predicted_error_percent=np.ones(68))
    assert operator.attrgetter("expected_error")(face) is face.predicted_error_percent

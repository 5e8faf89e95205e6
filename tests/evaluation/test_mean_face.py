import numpy as np

from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.evaluation.mean_face import mean_face, mean_face_errors, mean_shape


def test_errors_of_the_mean_face_are_plausible(synthetic98):
    errors = mean_face_errors(open_dataset(synthetic98), "train", "test")
    assert 0.03 < errors.mean() < 0.4


def test_missing_landmarks_are_masked(custom29):
    dataset = open_dataset(custom29)
    in_box = []
    for record in dataset.source("train"):
        low, high = record["box"][:2], record["box"][2:]
        in_box.append(np.ma.masked_invalid((record["landmarks"] - low) / (high - low)))
    mean = np.ma.stack(in_box).mean(axis=0)
    # The fixture has no annotation of this landmark in any face.
    assert mean.mask[:, 0].tolist() == [name == "left_pupil" for name in dataset.scheme.names]
    np.testing.assert_allclose(mean_face(dataset, "train"), mean.filled(0.5), atol=1e-5)
    assert np.isfinite(mean_shape(dataset, "train")).all()
    errors = mean_face_errors(dataset, "train", "test")
    assert 0 < len(errors) < dataset.num_faces["test"]
    assert np.isfinite(errors).all()

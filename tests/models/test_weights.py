import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcgcn_jax.models.weights import from_vector, to_vector

WEIGHTS = {
    "b.kernel": jnp.arange(6.0).reshape(2, 3),
    "a.bias": jnp.array([7.0, 8.0]),
    "c.count": jnp.array(9.0),
}


def test_vector_is_sorted_by_name():
    np.testing.assert_array_equal(to_vector(WEIGHTS), [7, 8, 0, 1, 2, 3, 4, 5, 9])


def test_vector_round_trip():
    shapes = jax.eval_shape(lambda: WEIGHTS)
    weights = from_vector(np.asarray(to_vector(WEIGHTS)), shapes)
    assert weights.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(weights[name], value)


@pytest.mark.parametrize("length", [8, 10])
def test_vector_of_wrong_length_is_an_error(length):
    with pytest.raises(ValueError, match=f"{length} numbers into weights with 9"):
        from_vector(np.zeros(length), WEIGHTS)

import sys

import pytest

from lcgcn_jax.cpu_kernels import library


@pytest.fixture(scope="session", autouse=True)
def compiler_is_available():
    if sys.platform != "linux" or library._compiler() is None:
        pytest.skip("the kernels need Linux and a C++ compiler")

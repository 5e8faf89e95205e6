"""The tiny configuration, with synthetic faces."""

import pytest
import tiny


@pytest.fixture
def tiny_config(make_tiny_config):
    """The whole configuration at 32 px with the tiny heatmap model; tests change it."""
    return make_tiny_config()


@pytest.fixture(scope="session")
def make_tiny_config(synthetic98):
    def make():
        config = tiny.get_config()
        config.data.dir = str(synthetic98)
        return config

    return make

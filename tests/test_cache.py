from pathlib import Path

import pytest

from lcgcn_jax import cache
from lcgcn_jax.errors import InputError


@pytest.fixture
def without_home(monkeypatch):
    """User without a home folder, as in a container or a system service."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("without_home")
def test_user_without_a_home_folder():
    assert cache.compilation_cache_folder() is None
    cache.use_compilation_cache()
    with pytest.raises(InputError, match="the user has no home folder; set XDG_CACHE_HOME"):
        cache.cache_folder()

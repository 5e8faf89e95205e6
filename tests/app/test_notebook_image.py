"""Image of the user in a notebook, with a simulated `google.colab`."""

import base64
import sys
import types

import numpy as np
import pytest

from lcgcn_jax.app.notebook import notebook_image
from lcgcn_jax.app.uploads import SAMPLE
from lcgcn_jax.errors import InputError
from lcgcn_jax.image_io import read_image


@pytest.fixture
def colab(monkeypatch):
    """Simulated module; its `files` and `script` are what the user uploads and the camera returns."""
    package = types.ModuleType("google.colab")
    package.uploaded, package.script = {}, None
    package.files = types.ModuleType("google.colab.files")
    package.files.upload = lambda: package.uploaded
    package.output = types.ModuleType("google.colab.output")

    def eval_js(code):
        assert "getUserMedia" in code
        if package.script is None:
            raise RuntimeError("NotAllowedError: Permission denied")
        return package.script

    package.output.eval_js = eval_js
    google = types.ModuleType("google")
    google.colab, google.__path__, package.__path__ = package, [], []
    modules = {"google": google, "google.colab": package}
    modules |= {f"google.colab.{name}": getattr(package, name) for name in ("files", "output")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return package


@pytest.mark.parametrize("source", ["upload", "webcam", "sample"])
def test_outside_colab_the_sample_is_returned(source, capsys):
    np.testing.assert_array_equal(notebook_image(source), read_image(SAMPLE))
    assert ("sample image" in capsys.readouterr().out) == (source != "sample")


def test_upload_and_webcam_in_colab(colab, capsys):
    np.testing.assert_array_equal(notebook_image(), read_image(SAMPLE))
    assert "No file was chosen" in capsys.readouterr().out
    colab.uploaded = {"me.jpg": SAMPLE.read_bytes()}
    np.testing.assert_array_equal(notebook_image("upload"), read_image(SAMPLE))
    colab.uploaded = {"me.jpg": b"text"}
    with pytest.raises(InputError, match=r"me\.jpg: the image cannot be decoded"):
        notebook_image("upload")
    with pytest.raises(InputError, match="webcam: cannot be used: NotAllowedError"):
        notebook_image("webcam")
    colab.script = "data:image/jpeg;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()
    np.testing.assert_array_equal(notebook_image("webcam"), read_image(SAMPLE))


def test_files_and_unknown_sources(tmp_path):
    np.testing.assert_array_equal(notebook_image(SAMPLE), read_image(SAMPLE))
    with pytest.raises(InputError, match="unknown source or file 'uploads'; did you mean 'upload'"):
        notebook_image("uploads")

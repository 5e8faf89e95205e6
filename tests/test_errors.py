"""Tests of `errors.install_command`: the extra of the package where it was installed from."""

import importlib.metadata
import json

import pytest

from lcgcn_jax.errors import install_command


@pytest.mark.parametrize(
    ("origin", "requirement"),
    [
        (None, "'lcgcn-jax[onnx]'"),
        ({"url": "file:///home/me/my%20clone", "dir_info": {}}, "'/home/me/my clone[onnx]'"),
        ({"url": "file:///clone", "dir_info": {"editable": True}}, "-e '/clone[onnx]'"),
        ({"url": "file:///tmp/lcgcn.whl", "archive_info": {}}, "'/tmp/lcgcn.whl[onnx]'"),
        (
            {"url": "https://example.org/a.tar.gz", "archive_info": {}, "subdirectory": "b"},
            "'lcgcn-jax[onnx] @ https://example.org/a.tar.gz#subdirectory=b'",
        ),
        (
            {"url": "https://example.org/a", "vcs_info": {"vcs": "git", "commit_id": "1f"}},
            "'lcgcn-jax[onnx] @ git+https://example.org/a@1f'",
        ),
        (
            {
                "url": "file:///repository",
                "vcs_info": {"vcs": "git", "commit_id": "1f", "requested_revision": "v1"},
            },
            "'lcgcn-jax[onnx] @ git+file:///repository@v1'",
        ),
    ],
)
def test_install_command_names_the_source(monkeypatch, origin, requirement):
    class Distribution:
        def read_text(self, name):
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    class Build:
        def read_text(self, name):
            return None

    builds = [Build(), Distribution()]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(builds))
    assert install_command("onnx") == f"pip install {requirement}"

"""Tests of `errors.install_command`: the extra of the package where it was installed from."""

import importlib.metadata
import json

import pytest

from lcgcn_jax.errors import install_command


@pytest.mark.parametrize(
    ("origin", "requirement"),
    [
        (None, "lcgcn-jax[onnx]"),
        ({"url": "file:///home/me/my%20clone", "dir_info": {}}, "/home/me/my clone[onnx]"),
        (
            {"url": "https://example.org/lcgcn", "vcs_info": {"vcs": "git", "commit_id": "1f"}},
            "lcgcn-jax[onnx] @ git+https://example.org/lcgcn",
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
    assert install_command("onnx") == f"pip install '{requirement}'"

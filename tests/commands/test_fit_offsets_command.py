"""`lcgcn research fit-offsets`, and `lcgcn eval --offsets` with its file."""

import json

import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.annotation_offsets import read_offsets
from lcgcn_jax.data.dataset import open_dataset


@pytest.mark.slow
def test_offsets_are_written_and_used_by_eval(small_run, synthetic98, tmp_path, capsys, error_line):
    out = tmp_path / "offsets.json"
    words = ["--model", str(small_run / "best"), "--data", str(synthetic98), "--out", str(out)]
    assert main(["fit-offsets", *words, "--batch-size", "8"]) == 0
    output = capsys.readouterr().out
    assert "mean distance from the predictions on training faces" in output
    dataset = open_dataset(synthetic98)
    offsets = read_offsets(out, dataset.scheme)
    assert offsets.provenance == {
        "dataset": dataset.name, "fingerprint": dataset.fingerprint, "split": "train",
    }  # fmt: skip
    assert "already exists" in error_line("fit-offsets", *words)
    assert "fewer than 9999" in error_line(
        "fit-offsets", *words, "--overwrite", "--min-count", "9999", "--batch-size", "8"
    )
    results = {}
    for name, extra in (("plain", []), ("moved", ["--offsets", str(out), "--normalizer", "box"])):
        path = tmp_path / f"{name}.json"
        command = ["eval", *words[:4], "--split", "test", "--json", str(path), "--batch-size", "8"]
        assert main([*command, *extra]) == 0
        results[name] = json.loads(path.read_text())
    assert results["moved"]["offsets"] == offsets.digest
    assert results["moved"]["normalizer"] == "box"
    assert not {"offsets", "normalizer"} & results["plain"].keys()

"""`lcgcn fit-offsets`: the file that it writes, and `lcgcn eval` and `lcgcn calibrate` with it."""

import json

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.annotation_offsets import read_offsets
from lcgcn_jax.data.dataset import open_dataset


def test_command_writes_a_file_that_training_and_eval_read(
    small_run, synthetic98, tmp_path, capsys, refused
):
    out = tmp_path / "offsets.json"
    words = ["--model", str(small_run / "best"), "--data", str(synthetic98), "--out", str(out)]
    assert main(["fit-offsets", *words, "--batch-size", "8"]) == 0
    said = capsys.readouterr().out
    assert "mean distance from the predictions on training faces" in said
    dataset = open_dataset(synthetic98)
    offsets = read_offsets(out, dataset.scheme)
    assert offsets.provenance == {
        "dataset": dataset.name, "fingerprint": dataset.fingerprint, "split": "train",
    }  # fmt: skip
    assert "already exists" in refused("fit-offsets", *words)
    assert "fewer than 9999" in refused(
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

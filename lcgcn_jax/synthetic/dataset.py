"""Preparation of datasets of synthetic faces."""

import dataclasses
from pathlib import Path

from lcgcn_jax.data import records
from lcgcn_jax.data.annotations import AnnotationList
from lcgcn_jax.data.formats import w300, wflw
from lcgcn_jax.data.records import PrepareReport
from lcgcn_jax.errors import InputError
from lcgcn_jax.synthetic.writers import write_300w, write_wflw

LAYOUTS = {"wflw98": (write_wflw, wflw.read), "ibug68": (write_300w, w300.read)}
"""Writer and reader of the official file layout, by the name of the scheme."""

OFFICIAL = "official"
"""Subfolder of the output folder that holds the faces in the official layout."""


def prepare_synthetic(
    scheme: str, out: Path, *, num_train: int, num_test: int, seed: int, overwrite: bool = False
) -> PrepareReport:
    """Generate synthetic faces in the official layout of a scheme and write them as records.

    Raises:
      InputError: `out` already exists, a count is below 1, or the seed is negative.
    """
    if seed < 0:
        raise InputError(f"--seed: {seed} has to be at least 0")
    if min(num_train, num_test) < 1:
        raise InputError("--faces and --test-faces must be at least 1")
    write, read = LAYOUTS[scheme]
    with records.fresh_folder(out, overwrite=overwrite, sources=[OFFICIAL]) as folder:
        official = folder / OFFICIAL
        write(official, num_train=num_train, num_test=num_test, seed=seed)
        annotations: AnnotationList = dataclasses.replace(read(official), kind="synthetic")
        return records.write_records(annotations, folder)

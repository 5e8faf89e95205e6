"""Calibration of the predicted errors of a bundle (`lcgcn research calibrate`)."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lcgcn_jax.atomic_io import writing
from lcgcn_jax.data.dataset import open_datasets
from lcgcn_jax.errors import InputError, count_of, require_absent
from lcgcn_jax.evaluation.fit_uncertainty import calibrate
from lcgcn_jax.evaluation.tables import format_calibration
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.interrupts import deferred
from lcgcn_jax.models.bundles import SHIPPED, find_bundle, save_uncertainty
from lcgcn_jax.models.hub import hub_reference
from lcgcn_jax.storage import BucketPath, as_path
from lcgcn_jax.uncertainty import UncertaintyModel

_MIN_FACES = 30  # for which no warning is printed


def calibrate_bundle(
    model: str | Path,
    data: Sequence[Path],
    split: str,
    *,
    offsets: Sequence[Sequence[str]] = (),
    batch_size: int = 32,
    out: Path | None = None,
    overwrite: bool = False,
) -> str:
    """Fit the uncertainty model of a bundle, and write it into the bundle or a copy.

    Args:
      model: as in `load_model`; one of the package, of the Hub or in a bucket needs `out`.
      offsets: dataset folders with files of annotation offsets, which are removed.
      out: folder of the copy; None: change the bundle itself.
      overwrite: replace the calibration of the bundle.

    Returns:
      A report of the quality of the fit.

    Raises:
      InputError: the model or the data cannot be used, or the calibration or `out` exists.
    """
    bundle = find_bundle(model)
    is_download = hub_reference(model) or isinstance(as_path(model), BucketPath)
    if out is not None:
        require_absent(out)
    elif bundle.parent == SHIPPED or is_download:
        where = "comes with the package" if bundle.parent == SHIPPED else "is a download"
        raise InputError(f"{model}: {where}; give --out for a calibrated copy")
    loaded = load_model(bundle)
    if out is None and loaded.calibration is not None and not overwrite:
        raise InputError(f"{bundle}: is already calibrated; give --out or --overwrite")
    datasets = open_datasets(data, loaded.scheme, offsets)
    fit = calibrate(
        loaded.predict_crops, datasets, split, image_size=loaded.image_size, batch_size=batch_size
    )
    target = out or bundle
    with writing(target):
        if out is None:
            save_uncertainty(bundle, fit.calibration)
        else:
            _write_copy(bundle, out, fit.calibration)
    lines = [f"{target}: calibrated; errors are in % of {loaded.scheme.normalizer_text}"]
    num_faces = sum(len(dataset.source(split, with_images=False)) for dataset in datasets)
    if num_faces < _MIN_FACES:
        lines.append(
            f"warning: only {count_of(num_faces, 'face')}; with fewer than {_MIN_FACES}, predicted errors "
            "and `reliable` can be far off; calibrate with more faces"
        )
    return "\n".join([format_calibration(datasets, split, fit), *lines])


def _write_copy(bundle: Path, out: Path, calibration: UncertaintyModel) -> None:
    """Write a calibrated copy of a bundle, all of its files or none."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        shutil.copytree(bundle, partial)
        save_uncertainty(partial, calibration)
        partial.replace(out)
    finally:
        with deferred():
            shutil.rmtree(partial, ignore_errors=True)

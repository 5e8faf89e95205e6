"""Public functions to create a model and to train."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from flax import nnx

from lcgcn_jax import compat
from lcgcn_jax.atomic_io import write_whole, writing
from lcgcn_jax.distributed import is_primary_process
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.models import registry
from lcgcn_jax.models.bundles import BEST, load_bundle, shipped_bundles
from lcgcn_jax.models.hub import hub_reference
from lcgcn_jax.storage import as_path
from lcgcn_jax.training.config import load_config
from lcgcn_jax.training.metric_writer import TENSORBOARD, read_metrics
from lcgcn_jax.training.run_lock import needs_writing
from lcgcn_jax.training.trainer import Trainer

CURVES = "curves.png"
"""Name of the plot of the training curves in a workdir."""


def create_model(
    name_or_config: str | Path | Mapping[str, Any] | ml_collections.ConfigDict,
    *,
    num_landmarks: int | None = None,
    seed: int = 0,
) -> nnx.Module:
    """Create a network with random weights.

    It maps normalized float crops `[b s s 3]` to an `LCGCNOutput` with coordinates in crop pixels. Mean
    shapes, which some graphs need, are zero until a training run sets them from its data.

    Args:
      name_or_config: name of a shipped model, folder of a bundle, training workdir, or `hf://owner/repo` (its
        architecture is used); config file or name of a config, with an optional `:argument`; a full config,
        or its field `model`.
      num_landmarks: number of landmarks k; by default that of the config's landmark scheme.
      seed: seed of the weights.

    Raises:
      InputError: the model or config does not exist, has an unknown field or value, or the number of
        landmarks is missing or not positive.
    """
    model, scheme_size = _model_config(name_or_config)
    count = scheme_size if num_landmarks is None else num_landmarks
    if count is None:
        raise InputError("create_model: this config has no landmark scheme; give num_landmarks")
    if count < 1:
        raise InputError(f"create_model: num_landmarks is {count}; give 1 or more")
    if not 0 <= seed < 2**32:
        raise InputError(f"create_model: seed is {seed}; give a number from 0 to {2**32 - 1:,}")
    return registry.create_model(model, count, rngs=nnx.Rngs(seed))


def _model_config(source: Any) -> tuple[Any, int | None]:
    """Configuration of the model, and the number of landmarks if there is a scheme."""
    if isinstance(source, str | Path):
        if hub_reference(source) or str(source) in shipped_bundles() or as_path(source).is_dir():
            bundle = load_bundle(source)
            return dict(bundle.model), bundle.scheme.num_landmarks
        source = load_config(str(source))
    fields = source.to_dict() if isinstance(source, ml_collections.ConfigDict) else source
    fields = compat.upgrade_config(fields)
    if "model" not in fields:
        return fields, None
    if not isinstance(fields["model"], Mapping):
        raise InputError(f"create_model: model: got {fields['model']!r}; expected fields")
    if "scheme" not in fields:
        return fields["model"], None
    return fields["model"], get_scheme(fields["scheme"]).num_landmarks


def train(
    config: str | Path | ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    accept_changes: bool = False,
    on_validation: Callable[[int, dict[str, float]], None] | None = None,
    loggers: Sequence[str] = (TENSORBOARD,),
) -> Path:
    """Train a model, or resume the run in a folder from its last checkpoint.

    All devices of this process are used. In the main thread, Ctrl-C, SIGTERM and SIGHUP save a checkpoint
    first.

    Args:
      config: config file or name of a config, with an optional `:argument`, or a config, as `load_config`
        returns it.
      workdir: folder of the run, on a disk or `gs://BUCKET/PATH`.
      accept_changes: resume even if the config or the data differ from those of the run.
      on_validation: called after each validation with the step and its NME in percent, by
        `validation/heatmap_nme` and `validation/graph_nme`.
      loggers: where metrics are logged, in addition to `metrics.jsonl`: any of `tensorboard`, `trackio` and
        `wandb`.

    Returns:
      Folder of the bundle with the best validation NME, for `load_model`.

    Raises:
      InputError: the config, the data or the folder cannot be used, or a logger is not installed.
      FloatingPointError: the loss or a weight is not finite.
      KeyboardInterrupt: a signal stopped the training, after saving.
    """
    if not isinstance(config, ml_collections.ConfigDict):
        config = load_config(str(config))
    folder = as_path(workdir)
    trainer = Trainer(config, folder, accept_changes=accept_changes, loggers=loggers)
    is_finished = trainer.run(on_validation=on_validation)
    if is_primary_process():
        write_curves(folder)
    if not is_finished:
        raise trainer.interruption()
    return folder / BEST


def write_curves(workdir: Path, path: Path | None = None) -> None:
    """Plot the training curves of a run to `path`, by default `CURVES` in its workdir.

    Raises:
      InputError: the file cannot be written.
    """
    # Matplotlib takes a second to import.
    from lcgcn_jax.visualize.curves import plot_curves

    curves = plot_curves(read_metrics(workdir))
    guard = needs_writing if path is None else writing
    path = path or workdir / CURVES
    with guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda tmp: curves.savefig(tmp, dpi=120))

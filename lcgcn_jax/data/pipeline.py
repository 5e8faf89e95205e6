"""Grain pipelines: endless, resumable batches for training, and padded batches for evaluation.

Both split a global batch into contiguous parts, one per process. Concatenated in the order of the
processes, the parts are the batch of a single process.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Float

from lcgcn_jax.data.augment import AugmentConfig, augment_face
from lcgcn_jax.data.crops import crop_face
from lcgcn_jax.data.dataset import FaceDataset, FaceSource
from lcgcn_jax.data.mixture import FaceMixture
from lcgcn_jax.landmarks import LandmarkScheme

Batch = dict[str, np.ndarray]


class TrainIterator(grain.DatasetIterator[Batch]):
    """Endless iterator over training batches.

    Its state is the number of batches taken. It does not depend on the number of threads or workers, so a
    run may resume with other numbers. `close` stops the workers.
    """

    def __init__(self, batches: grain.MapDataset, num_threads: int, num_workers: int):
        super().__init__()
        self._batches = batches
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._next_batch = 0
        self._iterator: Any = None

    def __next__(self) -> Batch:
        self._assert_not_closed()
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Position in plain types."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, int]) -> None:
        """Move to a position returned by `get_state`."""
        self._stop()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Stop threads and worker processes."""
        self._stop()
        super().close()

    def _start(self) -> Iterator[Batch]:
        batches = self._batches[self._next_batch :].to_iter_dataset(
            _read_options(self._num_threads)
        )
        if self._num_workers:
            # Grain's workers read absl flags, which are parsed only in programs that use `absl.app.run`.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(
                num_workers=self._num_workers, per_worker_buffer_size=2
            )
            batches = batches.mp_prefetch(options, worker_init_fn=_one_opencv_thread)
        return iter(batches)

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


@dataclasses.dataclass(frozen=True)
class EvalBatches(Iterable[Batch]):
    """Evaluation batches, which can be iterated over any number of times."""

    batches: grain.MapDataset
    num_threads: int

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches.to_iter_dataset(_read_options(self.num_threads)))


def train_iterator(
    dataset: FaceDataset | FaceMixture,
    split: str,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    augment: AugmentConfig,
    views: int = 0,
    num_workers: int = 0,
    num_threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """Endless batches of augmented crops for training, reshuffled every epoch.

    The order depends only on `seed` and `views`. The augmentation of a face depends on (seed, epoch, record)
    or, with fixed views, on (view, record). Batches may span two epochs, so that no face is dropped.

    The faces of a mixture are interleaved by the weights of its datasets, in an order that depends only on
    the weights. Each dataset has its own epochs.

    Args:
      batch_size: faces in a global batch, over all processes.
      seed: seed of the order and of the augmentation, 0 to 2**32 - 1.
      augment: strength of the augmentation.
      views: number of fixed views of each face, one per epoch in turn; 0: a new view in every epoch.
      num_workers: worker processes; 0: threads of this process.
      num_threads: threads that make batches, in each worker if there are any.
      process_index: the part of each global batch for this process.

    Returns:
      An iterator over `image` uint8 [b s s 3], `landmarks` float32 [b k 2] in crop pixels,
      `visible` bool [b k], `visibility` int8 [b k] (`augment_face`) and `record` int64 [b], the number
      of the face in `dataset.source(split)`, or in all sources of a mixture (`FaceMixture`); b is the
      part of this process. `get_state` and `set_state` resume it exactly.

    Raises:
      InputError: the dataset has no such split.
      ValueError: `batch_size` is not divisible by `process_count`.
    """
    mixture = FaceMixture.of(dataset) if isinstance(dataset, FaceDataset) else dataset
    part = _part_size(batch_size, process_count)
    options = mixture.scheme, image_size, augment, seed, views
    faces = _training_order(
        mixture,
        split,
        seed,
        lambda number, first, source: functools.partial(
            _training_face, number, first, source, *options
        ),
    )
    batches = faces.batch(part)[process_index::process_count]
    _one_opencv_thread()
    return TrainIterator(batches, num_threads, num_workers)


def view_order(
    mixture: FaceMixture, split: str, *, batch_size: int, seed: int, views: int
) -> TrainIterator:
    """Record and view numbers of `train_iterator` with fixed views, without images.

    Returns:
      An iterator over `record` and `view`, int64 [b].
    """
    numbers = _training_order(
        mixture,
        split,
        seed,
        lambda _, first, source: functools.partial(_view_number, first, len(source), views),
    )
    return TrainIterator(numbers.batch(batch_size), num_threads=1, num_workers=0)


def view_batches(
    dataset: FaceDataset,
    split: str,
    *,
    image_size: int,
    batch_size: int,
    augment: AugmentConfig,
    views: int,
    number: int = 0,
    num_threads: int = 4,
) -> EvalBatches:
    """All fixed views of one dataset in `train_iterator`, once, view by view in the order of the records.

    Args:
      number: position of the dataset in the mixture, on which its augmentation depends.

    Returns:
      Batches of `image`, `landmarks`, `visible`, `visibility`, `record` and `mask`. The last batch is padded
      with copies of the last face, which are False in `mask`.
    """
    source = dataset.source(split)
    make = functools.partial(_view, number, source, dataset.scheme, image_size, augment, views)
    padded = -(-views * len(source) // batch_size) * batch_size
    _one_opencv_thread()
    return EvalBatches(grain.MapDataset.range(padded).map(make).batch(batch_size), num_threads)


def eval_batches(
    dataset: FaceDataset,
    split: str,
    *,
    image_size: int,
    batch_size: int,
    box: str | Float[np.ndarray, "n 4"] = "gt",
    corruption: str = "none",
    num_threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Batches of evaluation crops: every face once, in order.

    The last batch is padded with copies of the last face, which are False in `mask`, so that all batches have
    the same shape, and all processes have the same number of batches.

    Args:
      batch_size: faces in a global batch, over all processes.
      box: name of a face box as in `crop_face`, or a box for each face of the split, in pixels of the
        record's image.
      process_index: the part of each global batch for this process.

    Returns:
      Batches of the fields of `crop_face`, stacked (`name` and `subset` as arrays of str), with
      `record` int64 [b] and `mask` bool [b].

    Raises:
      InputError: the dataset has no such split or box, or the corruption is unknown.
      ValueError: `batch_size` is not divisible by `process_count`.
    """
    source = dataset.source(split)
    part = _part_size(batch_size, process_count)
    # Raise errors about the box or the corruption here, and not in a thread.
    crop_face(source[0], image_size, box if isinstance(box, str) else box[0], corruption)
    padded = -(-len(source) // batch_size) * batch_size
    make = functools.partial(_evaluation_face, source, image_size, box, corruption)
    faces = grain.MapDataset.range(padded).map(make)
    batches = faces.batch(part)[process_index::process_count]
    _one_opencv_thread()
    return EvalBatches(batches, num_threads)


def record_names(source: FaceSource, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Names of the faces with these numbers, for example the `record` of a batch."""
    return [source[int(index)]["name"] for index in indices]


def _training_order(
    mixture: FaceMixture,
    split: str,
    seed: int,
    make: Callable[[int, int, FaceSource], Callable[[int, int], dict[str, Any]]],
) -> grain.MapDataset:
    """Endless, mixed order of the training faces.

    Args:
      make: for the number of a dataset in the mixture, the number of its first face, and its faces: a
        function from the position in the order of this dataset, and the face there, to an element.
    """
    streams, first = [], 0
    for number, source in enumerate(mixture.sources(split)):
        order = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()
        streams.append(order.map_with_index(make(number, first, source)))
        first += len(source)
    return grain.MapDataset.mix(streams, mixture.weights) if len(streams) > 1 else streams[0]


def _training_face(
    number: int,
    first: int,
    source: FaceSource,
    scheme: LandmarkScheme,
    image_size: int,
    augment: AugmentConfig,
    seed: int,
    views: int,
    position: int,
    record: int,
) -> dict[str, Any]:
    """Training face of source `number`, whose faces are numbered from `first` in the mixture."""
    epoch = position // len(source)
    # Fixed views do not depend on the seed, so that runs with different seeds can share cached features.
    key = (epoch % views, record) if views else (seed, epoch, record)
    if number:  # the first source varies as without a mixture
        key = (*key, number)
    face = augment_face(source[record], scheme, image_size, augment, np.random.default_rng(key))
    return face | {"record": np.int64(first + record)}


def _view_number(
    first: int, count: int, views: int, position: int, record: int
) -> dict[str, np.int64]:
    return {"record": np.int64(first + record), "view": np.int64(position // count % views)}


def _view(
    number: int,
    source: FaceSource,
    scheme: LandmarkScheme,
    image_size: int,
    augment: AugmentConfig,
    views: int,
    position: int,
) -> dict[str, Any]:
    last = views * len(source) - 1
    i = min(position, last)
    face = _training_face(
        number, 0, source, scheme, image_size, augment, 0, views, i, i % len(source)
    )
    return face | {"mask": np.bool_(position <= last)}


def _evaluation_face(
    source: FaceSource,
    image_size: int,
    box: str | Float[np.ndarray, "n 4"],
    corruption: str,
    position: int,
) -> dict[str, Any]:
    record = min(position, len(source) - 1)
    face_box = box if isinstance(box, str) else box[record]
    face = crop_face(source[record], image_size, face_box, corruption)
    return face | {"record": np.int64(record), "mask": np.bool_(position < len(source))}


def _part_size(batch_size: int, process_count: int) -> int:
    if batch_size <= 0 or batch_size % process_count:
        raise ValueError(
            f"batch size {batch_size} is not divisible by the number of processes, {process_count}"
        )
    return batch_size // process_count


def _read_options(num_threads: int) -> grain.ReadOptions:
    # Elements are whole batches, of which grain's default buffer of 500 would not fit in memory.
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)


def _one_opencv_thread(worker_index: int = 0, worker_count: int = 1) -> None:
    """Limit OpenCV to one thread, since batches are already made in several threads."""
    del worker_index, worker_count
    cv2.setNumThreads(1)

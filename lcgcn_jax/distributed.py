"""Training in several processes: initialization, shared errors, coordinated stop after a signal."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lcgcn_jax.errors import InputError, one_line

T = TypeVar("T")


def initialize_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    automatic: bool = False,
) -> None:
    """Connect this process to the others, before JAX computes anything.

    Args:
      coordinator: `HOST:PORT` of process 0, which all processes can reach.
      process_id: index of this process, 0 to `num_processes` - 1.
      automatic: let JAX detect the other arguments, on Cloud TPU, under Slurm and under Open MPI.

    Raises:
      InputError: the arguments contradict each other, cannot be detected, or the other processes cannot be
        reached.
    """
    if not automatic:
        _check_address(coordinator, num_processes, process_id)
    elif (coordinator, num_processes, process_id) != (None, None, None):
        raise InputError(
            "--distributed: finds the processes automatically; leave out --coordinator, "
            "--num-processes and --process-id"
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        fix = (
            "on machines that JAX does not detect, give --coordinator, --num-processes and --process-id"
            if automatic
            else "start all processes with the same --coordinator and --num-processes"
        )
        raise InputError(f"the other processes: {one_line(error)}; {fix}") from error


def _check_address(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    if coordinator is None:
        raise InputError("--num-processes and --process-id: need --coordinator HOST:PORT")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--coordinator {coordinator}: not HOST:PORT")
    if num_processes is None or process_id is None:
        raise InputError("--coordinator: needs --num-processes and --process-id")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process-id {process_id}: the {num_processes} processes are numbered from 0"
        )


def is_primary_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def raise_on_all_processes(function: Callable[[], T]) -> T:
    """Call a function in every process; an InputError in one of them is raised in all.

    Otherwise the other processes would wait for the failed one.

    Raises:
      InputError: with the message of the first process that failed.
    """
    result: Any = None
    message = ""
    try:
        result = function()
    except InputError as error:
        if jax.process_count() == 1:
            raise
        message = str(error)
    if jax.process_count() > 1:
        messages = gather_rows(np.array([message.encode()[:_MAX_MESSAGE]], f"S{_MAX_MESSAGE}"))
        if errors := [bytes(text).decode(errors="replace") for text in messages if text]:
            raise InputError(errors[0])
    return result


_MAX_MESSAGE = 4096  # bytes


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Concatenate n rows from each of the p processes, ordered by process index: `[p * n ...]`."""
    # As bytes, because JAX would round float64 and has no string dtype.
    raw = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(raw, tiled=True))
    return gathered.view(rows.dtype).reshape(-1, *rows.shape[1:])


@contextlib.contextmanager
def preemption_guard() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Record SIGTERM, SIGINT and SIGHUP within the block instead of ending the process.

    Yields:
      A function of the step with the same result in all processes: the signal to stop for after this step, or
      None. A signal to any process counts; several processes agree on the next step that all of them can
      reach, and on SIGTERM. In another thread than the main one, a single process records no signal.
    """
    numbers = [signal.SIGINT]
    # SIGHUP of a closed terminal; `nohup` ignores it.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    if jax.process_count() == 1:
        caught: list[signal.Signals] = []
        numbers.append(signal.SIGTERM)
        with _handled(lambda number, _: caught.append(signal.Signals(number)), *numbers):
            yield lambda step: caught[0] if caught else None
    else:
        # JAX's preemption service handles SIGTERM once the processes are connected.
        with _handled(lambda *_: os.kill(os.getpid(), signal.SIGTERM), *numbers):
            yield (
                lambda step: (
                    signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
                )
            )


@contextlib.contextmanager
def _handled(handler: Callable[..., Any], *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)

"""Many processes that train as one: joining them, failing together, stopping at the same step."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lcgcn_jax.errors import InputError, one_line

T = TypeVar("T")


def initialize_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of many, before JAX computes anything.

    Args:
      coordinator: `HOST:PORT` of process 0, which all can reach. Without it JAX finds all three out by
        itself: on Cloud TPU, under Slurm and under Open MPI.
      num_processes: how many there are.
      process_id: which of them this is, 0 to `num_processes` - 1.

    Raises:
      InputError: they do not fit together, nothing can be found out, or the others cannot be reached.
    """
    if coordinator is not None:
        _check_place(coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        mend = (
            "on machines that JAX knows nothing of, give --coordinator, --num-processes and --process-id"
            if coordinator is None
            else "all processes have to be started with the same --coordinator and --num-processes"
        )
        raise InputError(f"the other processes: {one_line(error)}; {mend}") from error


def _check_place(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
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
    """Whether this is the process that writes files and talks."""
    return jax.process_index() == 0


def raise_on_all_processes(function: Callable[[], T], *, main_only: bool = False) -> T | None:
    """Calls a function in every process; an InputError in one of them is raised in all.

    Otherwise the others would wait for the one that failed.

    Args:
      function: what to do.
      main_only: do it in the main process alone, while the others wait; they get None.

    Raises:
      InputError: with the message of the first process that has one.
    """
    result, message = None, ""
    if is_primary_process() or not main_only:
        try:
            result = function()
        except InputError as error:
            if jax.process_count() == 1:
                raise
            message = str(error)
    if jax.process_count() > 1:
        messages = gather_rows(np.array([message.encode()[:_LONGEST]], f"S{_LONGEST}"))
        if failed := [bytes(text).decode(errors="replace") for text in messages if text]:
            raise InputError(failed[0])
    return result


_LONGEST = 4096  # bytes of a message


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, as many from each, in the order of the processes: `[p * n ...]`."""
    # As bytes: JAX would round float64, and knows no text.
    raw = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(raw, tiled=True))
    return gathered.view(rows.dtype).reshape(-1, *rows.shape[1:])


@contextlib.contextmanager
def preemption_guard() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Within, SIGTERM, SIGINT and SIGHUP do not kill: they make a note, which is asked for once a step.

    Yields:
      A function of the step, the same in all processes: the signal that asks to stop there, or None. A
      signal to any one of them counts; many processes agree on the next step that all of them can reach,
      and on SIGTERM.
    """
    numbers = [signal.SIGINT]
    # Of a terminal that is closed; `nohup` ignores it.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    if jax.process_count() == 1:
        caught: list[signal.Signals] = []
        numbers.append(signal.SIGTERM)
        with _handled(lambda number, _: caught.append(signal.Signals(number)), *numbers):
            yield lambda step: caught[0] if caught else None
    else:
        # SIGTERM is what JAX's own preemption service listens to, once the processes have joined.
        with _handled(lambda *_: os.kill(os.getpid(), signal.SIGTERM), *numbers):
            yield (
                lambda step: (
                    signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
                )
            )


@contextlib.contextmanager
def _handled(handler: Callable[..., Any], *numbers: signal.Signals) -> Iterator[None]:
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)

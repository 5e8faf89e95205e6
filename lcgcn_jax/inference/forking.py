"""Detection of processes that were forked after JAX started, in which JAX hangs.

JAX only warns at the fork (https://github.com/jax-ml/jax/issues/1805). Delete this module when JAX works in
forked processes or raises an error there itself.
"""

import os
import sys

_forked_from: int | None = None
"""Id of the parent process in which JAX had started before the fork."""


def check_not_forked() -> None:
    """Refuse to run JAX in a process where it would hang.

    Raises:
      RuntimeError: this process, or one of its parents, was forked after JAX had started.
    """
    if _forked_from is not None:
        raise RuntimeError(
            f"this process was forked from process {_forked_from} after JAX had started there, and JAX hangs "
            "in forked processes; start workers by multiprocessing.get_context('spawn')"
        )


def _note_fork() -> None:
    global _forked_from
    # JAX has no public function that checks whether it has started without starting it.
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        _forked_from = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)

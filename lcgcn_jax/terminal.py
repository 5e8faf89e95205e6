"""Output of commands: encodings, progress bars, and messages of libraries."""

import io
import logging
import os
import sys
import warnings

_LOG_INTERVAL = "10"
"""Seconds between two lines of a progress bar in a file."""


def set_up_output() -> None:
    """Prepare the standard streams and the libraries for a command, before it imports `tqdm`."""
    # Python has None for a stream that the shell closed, as with `>&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 stays open
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Escape file names that cannot be encoded, as standard error does.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", _LOG_INTERVAL)
    # Messages that the user of a command cannot act on: temporary font cache, damaged metadata of images.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    cache_failures = "Error (reading|writing) persistent compilation cache"
    warnings.filterwarnings("ignore", message=cache_failures)

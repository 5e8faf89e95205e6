"""Server of the page, for the command line and for notebooks."""

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lcgcn_jax.errors import InputError, install_command
from lcgcn_jax.inference.model import LandmarkModel, list_models, load_model
from lcgcn_jax.models.bundles import DEFAULT_MODEL

LOCALHOST = "127.0.0.1"

_FOLDER_VARIABLE = "GRADIO_TEMP_DIR"  # variable with the folder where Gradio writes files
_MAX_MODELS = 3  # in memory
_MAX_WAIT = 20.0  # for running predictions when the page is closed, in seconds


class _Models:
    """Models in memory, and the number of predictions that are running."""

    def __init__(self, detector_model: str | Path | None):
        load = functools.partial(load_model, detector_model=detector_model)
        self.load = functools.lru_cache(maxsize=_MAX_MODELS)(load)
        self._running, self._changed = 0, threading.Condition()

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[LandmarkModel]:
        """Context with the model of a name."""
        self._count(1)
        try:
            yield self.load(name)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._changed:
            self._running += change
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait for running predictions: a thread in XLA or OpenCV aborts the process when Python ends."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, timeout=_MAX_WAIT)


class App:
    """A running page; `launch_app` returns one.

    Attributes:
      url: address on this computer.
    """

    def __init__(self, page: Any, url: str, folder: Path, models: _Models):
        self._page, self.url, self._folder, self._models = page, url, folder, models
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"App({self.url})"

    def wait(self) -> None:
        """Wait for a signal, such as Ctrl-C."""
        threading.Event().wait()

    def close(self) -> None:
        """Stop the server, and delete the files that were uploaded."""
        self._page.close(verbose=False)
        self._models.wait()
        _remove_files(self._folder)
        atexit.unregister(self.close)


def launch_app(
    models: Sequence[str | Path] = (),
    *,
    host: str = LOCALHOST,
    port: int | None = None,
    share: bool = False,
    detector_model: str | Path | None = None,
) -> App:
    """Start the page to try models on images, videos and a webcam. In a notebook, it is also shown there.

    The page needs no other host: it works offline, if the face detector is in the cache or `detector_model`
    is given.

    Args:
      models: models to choose from, as in `load_model`, in addition to the shipped ones; the first one is
        selected.
      host: address of the server. The default accepts connections from this computer only; `0.0.0.0` accepts
        them from the network.
      port: port; by default a free one from 7860.
      share: make the page public through a server of Gradio. Never done without this argument.
      detector_model: as in `load_model`.

    Raises:
      InputError: Gradio is not installed, a model or the face detector cannot be loaded, or the port is in
        use.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError(f"the page needs Gradio; {install_command('app')}")

    loaded = _Models(detector_model)
    names = list(dict.fromkeys([*map(str, models), DEFAULT_MODEL, *list_models()]))
    _ = loaded.load(names[0]).detector  # raises an error before the page opens
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from lcgcn_jax.app.page import build_page, launch_options  # imports Gradio, which takes seconds

    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="lcgcn-app-"))
        stack.callback(_remove_files, folder)
        # Gradio copies the results of videos from another folder, which it does not serve. It reads the
        # variable when the page is built.
        results, uploads = folder / "results", folder / "uploads"
        results.mkdir()
        os.environ[_FOLDER_VARIABLE] = str(uploads)
        page = build_page(names, loaded.use, results)
        stack.callback(page.close, verbose=False)
        try:
            _, url, _ = page.launch(
                server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True,
                show_error=True, **launch_options(),
            )  # fmt: skip
        except (OSError, OverflowError) as error:
            where = f"{host}:{port or '7860 to 7959'}"
            raise InputError(
                f"{where}: the page cannot be served; the port is in use, or the address is not of this "
                "computer; choose another --port or --host"
            ) from error
        stack.pop_all()
    return App(page, url, folder, loaded)


def _remove_files(folder: Path) -> None:
    """Delete the files of a page that has ended."""
    shutil.rmtree(folder, ignore_errors=True)
    os.environ.pop(_FOLDER_VARIABLE, None)

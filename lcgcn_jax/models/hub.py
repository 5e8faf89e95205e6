"""Models on the Hugging Face Hub: download of a bundle to the cache of huggingface_hub.

The variables of huggingface_hub apply: `HF_TOKEN` for private repositories, `HF_HOME` for the cache,
`HF_ENDPOINT` for a mirror, and `HF_HUB_OFFLINE=1` to use only the cache. Bundles contain safetensors and
JSON, so that loading one runs no code of the repository.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from lcgcn_jax.errors import InputError, install_command, one_line

_PREFIX = re.compile(r"^hf:/{1,2}")  # `Path` drops one of the slashes
_REFERENCE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def hub_reference(model: str | Path) -> str | None:
    """Name of a model on the Hub, `hf://owner/repo` with an optional `@revision`; None for another model."""
    name, count = _PREFIX.subn("hf://", str(model), count=1)
    return name if count else None


def download_snapshot(name: str, files: Sequence[str]) -> Path:
    """Download files of a model repository, unless the cache has them.

    Args:
      name: `hf://owner/repo`, with an optional `@` and a branch, tag or commit.
      files: names of the files to download; a file that the repository lacks is skipped.

    Returns:
      Folder of the snapshot in the cache, which must not be changed.

    Raises:
      InputError: the reference is malformed, huggingface_hub is not installed, or the repository cannot be
        read.
    """
    match = _REFERENCE.fullmatch(name)
    if match is None:
        raise InputError(
            f"{name}: not a model of the Hugging Face Hub; write hf://OWNER/REPO or hf://OWNER/REPO@REVISION"
        )
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError(f"{name}: needs huggingface_hub; {install_command('hub')}") from error
    try:
        folder = huggingface_hub.snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=list(files)
        )
    except errors.GatedRepoError as error:
        raise InputError(
            f"{name}: access to this repository has to be requested on its page; then set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{name}: no such repository, or it is private; check the name, or set HF_TOKEN to a token that "
            "can read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{name}: the repository has no revision {match['revision'] or 'main'!r}; give a branch, tag or "
            "commit"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{name}: not in the cache, and the Hub cannot be reached ({_cause(error)}); check the network, "
            "HF_HUB_OFFLINE and HF_ENDPOINT"
        ) from error
    # huggingface_hub raises errors of its HTTP library too, which changes between its releases.
    except Exception as error:
        raise InputError(f"{name}: cannot be downloaded: {_cause(error)}") from error
    return Path(folder)


def _cause(error: BaseException) -> str:
    """First sentence of the error that caused a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)[:200] if isinstance(error, Exception) else type(error).__name__

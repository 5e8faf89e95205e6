"""Exception for user errors, and helpers for one-line messages."""

import difflib
from collections.abc import Iterable
from pathlib import Path

_DISTRIBUTION = "lcgcn-jax"


class InputError(ValueError):
    """An input, option or output path cannot be used.

    The message is one line that names the file or option and says how to fix it. The command line
    prints it without a traceback and exits with code 2.
    """


def choose(name: str, value: object, choices: Iterable[str], *, kind: str = "value") -> None:
    """Check that the value of an option or field is one of its choices.

    Args:
      name: name of the option or field, with which the message starts.
      kind: noun for the value in the message.

    Raises:
      InputError: it is not; the message suggests the most similar choice and lists up to eight.
    """
    choices = list(choices)
    if value not in choices:
        listing = f" Choose one of {', '.join(choices)}" if len(choices) <= 8 else ""
        hint = did_you_mean(value, choices, cutoff=0.0)
        raise InputError(f"{name}: unknown {kind} {value!r}{hint}{listing}")


def did_you_mean(value: object, choices: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Hint `; did you mean 'x'?`; empty if no choice has a `difflib` similarity of at least `cutoff`."""
    matches = difflib.get_close_matches(str(value), choices, n=1, cutoff=cutoff)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def require_absent(path: Path, *, overwrite: bool | None = None) -> None:
    """Check that an output does not exist yet, or may be overwritten; None: there is no such option.

    Raises:
      InputError: it exists and must not be overwritten.
    """
    if path.exists() and not overwrite:
        fix = "" if overwrite is None else " or give --overwrite (overwrite=True in Python)"
        raise InputError(f"{path}: already exists; choose another path{fix}")


def count_of(number: int, noun: str) -> str:
    """Number with a regular noun, such as `1 face`, `1,200 faces` and `2 boxes`."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{number:,} {noun}{ending}"


def printable(text: object) -> str:
    """Escape line ends and other unprintable characters, which file names may contain."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def one_line(error: BaseException) -> str:
    """Format an exception of a library as a single line."""
    text = " ".join(str(error).split())
    return f"no {text}" if isinstance(error, KeyError) else text or type(error).__name__


def install_command(extra: str) -> str:
    """Command that installs an extra of this package from where the package was installed (PEP 610)."""
    import importlib.metadata  # these take too long for the start of every command
    import json
    import urllib.parse
    import urllib.request

    requirement = f"{_DISTRIBUTION}[{extra}]"
    # In a clone, the metadata of a build can come before those of the installation.
    builds = importlib.metadata.distributions(name=_DISTRIBUTION)
    origins = filter(None, (build.read_text("direct_url.json") for build in builds))
    origin = json.loads(next(origins, "{}"))
    url, option = origin.get("url", ""), ""
    if url.startswith("file:") and "vcs_info" not in origin:
        path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
        requirement = f"{path}[{extra}]"
        option = "-e " if origin.get("dir_info", {}).get("editable") else ""
    elif url:
        if vcs := origin.get("vcs_info"):
            url = f"{vcs['vcs']}+{url}@{vcs.get('requested_revision') or vcs['commit_id']}"
        if folder := origin.get("subdirectory"):
            url += f"#subdirectory={folder}"
        requirement += f" @ {url}"
    return f"pip install {option}'{requirement}'"

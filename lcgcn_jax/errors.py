"""The one exception type for mistakes that a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the file (or flag) and says how to mend it. The command line
    prints it and exits with code 2, without a traceback.
    """


def printable(text: object) -> str:
    """A text for a message of one line: line ends and all else that does not print are escaped.

    File names may hold any of it, and bytes that are no text at all.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def one_line(error: Exception) -> str:
    """What an exception of a library says, for a message of one line."""
    text = " ".join(str(error).split())
    return f"no {text}" if isinstance(error, KeyError) else text or type(error).__name__

"""The one exception type for mistakes that a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the file (or flag) and says how to mend it. The command line
    prints it and exits with code 2, without a traceback.
    """


def one_line(error: Exception) -> str:
    """What an exception of a library says, for a message of one line."""
    text = " ".join(str(error).split())
    return f"no {text}" if isinstance(error, KeyError) else text or type(error).__name__

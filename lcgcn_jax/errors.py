"""The one exception type for mistakes that a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the file (or flag) and says how to mend it. The command line
    prints it and exits with code 2, without a traceback.
    """

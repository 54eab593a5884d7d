"""The one error for what a user can cause and mend. Everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """A setting, flag, path or file that cannot be used. The message names it, its value and the mend. Exit code 2."""

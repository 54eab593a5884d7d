"""Errors that are told in one message. Everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """A setting, flag, path or file that cannot be used. The message names it, its value and the mend. Exit code 2."""


class RunFailed(RuntimeError):
    """Training cannot go on, through no fault of the input. The message says why and the mend. Exit code 1."""

"""Errors that are told in one message. Everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """A setting, flag, path or file that cannot be used. The message names it, its value and the mend. Exit code 2."""


class RunFailed(RuntimeError):
    """Training cannot go on, through no fault of the input. The message says why and the mend. Exit code 1."""


class DataFault(RunFailed):
    """Training data that is missing, damaged or not what it says, met while reading it. The message names the file."""

    def __init__(self, text: str) -> None:
        # a loader worker's error comes wrapped in its traceback, as text: its last line is the message
        super().__init__(text.rpartition("DataFault: ")[2].strip())

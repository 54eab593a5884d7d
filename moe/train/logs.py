"""One row of metrics per log interval, written to every place the user asked for.

    save_folder/metrics.jsonl   one JSON object a line, `step` in each: the source of truth
    save_folder/tensorboard/    TensorBoard event files
    W&B                         one run id for the life of the run, kept in run.json

Decisions:
- One destination collects and writes at the interval, so a step between two rows costs nothing.
- Text is a row of its own: one name for each text, so that it is cut and purged as numbers are.
- Lists (the load of each expert) stand in metrics.jsonl alone: as scalars they would be thousands.
- After a resume the rows beyond the resumed step are cut (JSONL), purged (TensorBoard) or refused by W&B itself, so no
  step is lost or doubled.
- A disk that takes no row is reported once and does not end the run; metrics.jsonl catches up when there is space
  again.
- W&B runs beside the training, in a process of its own: what becomes of it is a warning, no end of the run.
- W&B is called directly: Composer's WandBLogger starts a new run at each resume and uses `Run.get_url`, which is gone.
"""

from __future__ import annotations

import html
import json
import math
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from composer import Logger, State
from composer.loggers import LoggerDestination

from moe.common.errors import InputError
from moe.common.task_metrics import PREFIX
from moe.common.typed_json import parse_json
from moe.common.units import say
from moe.config.times import Every

Row = Mapping[str, float | str | list[float]]
Writer = Callable[[int, Row], None]
# Composer logs these at every batch; what they say stands in our own metrics.
DROPPED = ("loss/train/", "trainer/", "time/batch", "time/sample", "time/token", "time/epoch", "rank_zero_seed")


class RunLog(LoggerDestination):
    """Collects metrics and hands a row to each writer after the first step, at every log interval, after an evaluation
    and at the end; and of what a callback of the user's has logged, after that step.
    """

    def __init__(self, writers: Sequence[Writer], every: Every):
        self.writers = writers
        self.every = every
        self.pending: dict[str, float | list[float]] = {}
        self.of_users: set[str] = set()  # names that callbacks of the user's have logged
        self._reported: set[str] = set()

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        at_once = {name: float(value) for name, value in metrics.items() if name.startswith(PREFIX)}
        if at_once:
            assert step is not None
            self._send(step, at_once)
        for name, value in metrics.items():
            if not name.startswith((*DROPPED, PREFIX)):
                self.pending[name] = value if isinstance(value, list) else float(value)

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        """Rows of (key, text), written at once."""
        assert step is not None
        self._send(step, {f"{name}/{key}": text for key, text in rows})

    def batch_end(self, state: State, logger: Logger) -> None:
        step = int(state.timestamp.batch)
        if self.every.due(step) or step == 1:  # the loss that a run begins with, whatever the interval
            self._write(state)
        else:  # ours that is pending may be of an earlier step
            self._write(state, self.of_users)

    def eval_end(self, state: State, logger: Logger) -> None:
        self._write(state, [name for name in self.pending if name.startswith("metrics/") or name in self.of_users])
        # what else waits for its row would have another step's; a save is told in the next row, whatever its step
        self.pending = {name: value for name, value in self.pending.items() if name.startswith("checkpoint/")}

    def close(self, state: State, logger: Logger) -> None:
        self._write(state, self.of_users)  # what was logged after the last row

    def _write(self, state: State, names: Collection[str] | None = None) -> None:
        """A row of what is pending; of `names` alone where these are given."""
        row = {name: value for name, value in self.pending.items() if names is None or name in names}
        self.pending = {name: value for name, value in self.pending.items() if name not in row}
        if row:
            self._send(int(state.timestamp.batch), row)

    def _send(self, step: int, row: Row) -> None:
        for write in self.writers:
            try:
                write(step, row)
            except OSError as error:
                if (cause := error.strerror or str(error)) not in self._reported:
                    self._reported.add(cause)
                    say(f"warning: the logs cannot be written from step {step:,} on: {cause}; training continues")


def jsonl_writer(path: Path, resumed_step: int, eval_again: bool = False) -> Writer:
    """Appends rows to `path`; first cuts rows beyond `resumed_step` and a last line that a kill left half written.

    eval_again: the evaluation of `resumed_step` is made again; rows of those of its sets that were done are cut too.
    """
    if path.exists():
        kept = [line for line in path.read_bytes().splitlines() if _step_of(line) <= resumed_step]
        kept = [line for line in kept if not (eval_again and _is_eval(line) and _step_of(line) == resumed_step)]
        aside = path.with_suffix(".tmp")
        aside.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(aside, path)
    file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
    waiting = bytearray()  # what a full disk has not taken yet

    def write(step: int, row: Row) -> None:
        finite = {n: str(v) if isinstance(v, float) and not math.isfinite(v) else v for n, v in row.items()}
        waiting.extend(json.dumps({"step": step, **finite}).encode() + b"\n")
        while waiting:
            del waiting[: file.write(waiting)]

    return write


def last_step(path: Path) -> int:
    """The last step that has a row; 0 where there is none."""
    steps = [_step_of(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return int(max([step for step in steps if step < math.inf], default=0))


def evaluated_at(log: bytes, step: int, keys: Sequence[str]) -> bool:
    """Whether metrics.jsonl holds all `keys` of the evaluation of `step`; one that was interrupted is not there."""
    found = [line for line in log.splitlines() if _is_eval(line) and _step_of(line) == step]
    return all(any(f'"{key}"'.encode() in line for line in found) for key in keys)


def logged_at(log: bytes, step: int, key: str) -> bool:
    """Whether metrics.jsonl holds `key` at `step`."""
    return any(f'"{key}"'.encode() in line and _step_of(line) == step for line in log.splitlines())


def _is_eval(line: bytes) -> bool:
    return b'"metrics/eval/' in line


def _step_of(line: bytes) -> float:
    try:
        return parse_json(line, _Step)["step"]
    except ValueError:
        return math.inf


class _Step(TypedDict):
    step: int


def tensorboard_writer(folder: Path, resumed_step: int) -> Writer:
    """A disk that cannot be written ends TensorBoard for this start."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
    from torch.utils.tensorboard import SummaryWriter

    plain = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.thread, _AsyncWriterThread) and issubclass(args.exc_type, OSError)):
            plain(args)  # else the next row raises it

    threading.excepthook = hook
    board = SummaryWriter(log_dir=str(folder), purge_step=resumed_step + 1, flush_secs=10)

    def write(step: int, row: Row) -> None:
        for name, value in row.items():
            if isinstance(value, str):
                board.add_text(name, value, global_step=step)
            elif not isinstance(value, list):
                board.add_scalar(name, value, global_step=step)

    return write


def wandb_writer(
    *, project: str, entity: str | None, mode: str, tags: list[str], run_id: str, name: str, folder: Path, config: dict
) -> tuple[Writer, Callable[[int], None]]:
    """Starts or resumes the W&B run `run_id`.

    Returns the writer, which raises OSError alone, and the function that ends the run, which raises nothing.

    Raises:
        InputError: W&B cannot be reached or has no login; the message tells how to continue without.
    """
    import wandb

    try:
        run = wandb.init(
            project=project,
            entity=entity,
            mode=os.environ.get("WANDB_MODE", mode),  # type: ignore[arg-type]
            tags=tags,
            id=run_id,
            resume="allow",
            name=name,
            dir=str(folder),
            config=config,
            settings=wandb.Settings(silent=True),
        )
    except Exception as error:
        raise InputError(f"loggers.wandb: W&B did not start ({error}); set loggers.wandb.mode=offline") from None

    def write(step: int, row: Row) -> None:
        try:
            text = {n: wandb.Html(html.escape(v)) for n, v in row.items() if isinstance(v, str)}
            run.log({**{n: v for n, v in row.items() if not isinstance(v, list)}, **text}, step=step)
        except Exception as error:  # whatever W&B meets, as where its process was killed
            raise OSError(f"W&B: {_words(error)}") from error

    def finish(code: int) -> None:
        try:
            run.finish(exit_code=code)
        except Exception as error:
            with suppress(Exception, SystemExit):
                wandb.teardown()  # or its own try at exit ends in a traceback
            say(f"warning: W&B did not take the end of the run: {_words(error)}; all rows are in metrics.jsonl")

    return write, finish


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

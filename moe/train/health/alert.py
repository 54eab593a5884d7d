"""Carries an alarm to people who are not at the terminal: `alert_command` and W&B. Neither can hold up or end a run.

The command is split as a shell would and run without one; the message is its last argument and in MOE_MESSAGE, so
nothing in it is ever read as a command.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable

from moe.train.health.detectors import Alarm

TIMEOUT = 60.0  # seconds


def run_command(command: str, alarm: Alarm, *, run_name: str, step: int, report: Callable[[str], None]) -> None:
    """In the background: `command MESSAGE`, with MOE_RUN, MOE_STEP, MOE_ALARM and MOE_MESSAGE in its environment."""
    message = f"{run_name}, step {step:,}: {alarm.message}. Fix: {alarm.fix}"
    about = {"MOE_RUN": run_name, "MOE_STEP": str(step), "MOE_ALARM": alarm.name, "MOE_MESSAGE": message}
    arguments = ([*shlex.split(command), message], {**os.environ, **about}, report)
    threading.Thread(target=_run, args=arguments, name="alert", daemon=True).start()


def _run(command: list[str], env: dict[str, str], report: Callable[[str], None]) -> None:
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, env=env, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    except (OSError, ValueError) as error:
        return report(f"warning: alert_command could not be started: {error}")
    try:
        code = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return report(f"warning: alert_command did not end within {TIMEOUT:.0f} s and was ended")
    if code:
        report(f"warning: alert_command ended with exit code {code}")


def wandb_alert(alarm: Alarm, *, report: Callable[[str], None]) -> None:
    """Through the W&B run of this process, which mails or posts it as the user has set there."""
    import wandb

    try:
        if wandb.run is not None:
            wandb.run.alert(title=alarm.name, text=f"{alarm.message}. Fix: {alarm.fix}")
    except Exception as error:  # whatever the network or wandb does
        report(f"warning: W&B did not accept the alert: {error}")

"""Lives of workers for test_pool.py. A worker imports this file, so it imports little."""

import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any


def asked_whether_blocked(channel: Connection, *shared: object) -> None:
    """A worker that answers whether Ctrl+C is blocked in it."""
    while True:
        channel.recv()
        channel.send((signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []), None))


def failing(channel: Connection, *shared: object) -> None:
    """A worker whose units raise an error that a broken pipe to it could be taken for."""
    channel.recv()
    channel.send((ConnectionResetError("the hub"), "Traceback of the worker"))


def idle(channel: Connection, *shared: object) -> None:
    time.sleep(60)


def killed_in_the_lock(channel: Connection, work: object, counter: Any, at: object) -> None:
    channel.recv()
    counter.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def aborted(channel: Connection, work: object, counter: object, at: Any) -> None:
    """A worker whose library ends the process at the second file of its item."""
    at.value = channel.recv().units[1].file_index
    os.abort()


def aborted_before(channel: Connection, *shared: object) -> None:
    channel.recv()
    os.abort()

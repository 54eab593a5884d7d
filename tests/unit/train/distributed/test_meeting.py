"""Ranks that wait for each other: who is missing is said, what does not fit is refused, a start anew is met again."""

from __future__ import annotations

import dataclasses
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from moe.common.errors import InputError
from moe.train.distributed import meeting
from moe.train.distributed.meeting import Member, NotMet, meet
from moe.train.distributed.peers import Peers


@pytest.fixture(autouse=True)
def new_place(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A port at which nobody has met; the errors of a test keep its stores alive."""

    def find() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(meeting, "LOOK", 0.02)
    find()
    return find


def member(rank: int, node: int, *, size: int = 2, machine: str | None = None, token: str = "") -> Member:
    return Member(
        rank=rank,
        local_rank=rank % size,
        local_size=size,
        world_size=2 * size,
        host=f"host{node}",
        address=f"10.9.8.{node}",
        memory=machine or f"machine{node}",
        pid=1,
        token=token or f"token{rank}-{node}",
    )


def together(members: list[Member], said: Callable[[str], None] = lambda line: None, seconds: float = 10) -> list[Any]:
    """What each of them gets, or the error."""
    results: list[Any] = [None] * len(members)

    def run(index: int) -> None:
        try:
            results[index] = meet(members[index], seconds=seconds, say=said)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_all_ranks_get_the_same_roster_in_order() -> None:
    members = [member(rank, rank // 2) for rank in range(4)]
    results = together([members[3], members[1], members[0], members[2]])
    assert all(roster == members for _, roster in results), results


def test_who_is_missing_is_said_by_machine_and_the_wait_ends(monkeypatch, new_place) -> None:
    monkeypatch.setattr(meeting, "SAID_AGAIN", 0.3)
    said: list[str] = []
    missing = together([member(0, 0), member(1, 0)], said.append, seconds=2.5)
    assert all(isinstance(result, NotMet) for result in missing)
    assert "2 of 4 ranks are here, missing: node 1, after 0m02s (start_timeout)" in [str(result) for result in missing]
    again = [line for line in said if line.startswith("2 of 4 ranks are here, missing: node 1; waiting for")]
    assert len(again) > 2, "it is repeated"
    new_place()
    (alone,) = together([member(2, 1)], seconds=0.3)
    assert "rank 0 does not answer at 127.0.0.1:" in str(alone)
    new_place()
    (third, *_) = together([member(0, 0), member(1, 0), member(3, 1)], seconds=1)
    assert "3 of 4 ranks are here, missing: rank 2 of node 1" in str(third)


def test_a_port_that_something_else_holds_ends_the_start_by_its_number(monkeypatch) -> None:
    """It was waited for until start_timeout, then 75: a scheduler tried the same port again, without end."""
    monkeypatch.setattr(meeting, "TAKEN", 0.5)
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        (refused,) = together([member(0, 0)], seconds=5)
    assert isinstance(refused, InputError)
    assert f"port {port} is still in use by another process after" in str(refused) and "on host0; give" in str(refused)
    monkeypatch.setattr(meeting, "TAKEN", 30)
    with socket.create_server(("", port)) as other:  # of an earlier start, which ends
        threading.Timer(0.5, other.close).start()
        (waited,) = together([member(0, 0)], seconds=2)
    assert "1 of 4 ranks are here" in str(waited)

    def refuses(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("failed to bind: port: 80, code: -13, name: EACCES, message: permission denied")

    monkeypatch.setattr("torch.distributed.TCPStore", refuses)
    (refused,) = together([member(0, 0)], seconds=5)
    assert isinstance(refused, InputError) and f"port {port} is not open to this user on host0" in str(refused)


def test_two_launchers_on_one_machine_are_refused_in_one_sentence() -> None:
    """They hung after "start fresh", and ignored SIGTERM: Streaming's leader shares through /dev/shm."""
    results = together([member(rank, rank // 2, machine="one") for rank in range(4)])
    assert all(isinstance(result, InputError) for result in results), results
    (text,) = {str(result) for result in results}
    told = r"ranks (0 and 2|1 and 3) run on one machine \(host\d\) under two launchers, both with LOCAL_RANK [01]"
    assert re.match(told, text), text


def test_launchers_that_were_given_other_numbers_are_refused() -> None:
    other = dataclasses.replace(member(2, 1), local_size=1)
    results = together([member(0, 0), member(1, 0), other])
    assert {type(result) for result in results} == {InputError}
    assert "rank 0 on host0 was started with 4 ranks, 2 on its machine, and rank 2 on host1 with 4, 1" in str(
        results[0]
    )


def test_two_machines_of_one_number_are_refused() -> None:
    first, second = member(2, 1, token="a"), member(2, 2, token="b")
    results = together([member(0, 0), first, second], seconds=1.5)
    refused = [str(result) for result in results if isinstance(result, InputError)]
    assert any("rank 2 is taken" in text and "host1" in text and "host2" in text for text in refused), results


def test_a_rank_that_is_started_anew_takes_the_place_of_the_one_that_died() -> None:
    """The dead one's entry is in the store: its token would be waited for until start_timeout."""
    results: list[Any] = []
    lead = threading.Thread(target=lambda: results.extend(together([member(0, 0), member(1, 0), member(2, 1)])))
    lead.start()
    time.sleep(0.5)
    dead = dataclasses.replace(member(3, 1), token="dead")
    store = meeting._connect(dead, meeting._Watch(5, print), "here")
    store.set("here/3", meeting._packed(dead))
    time.sleep(0.3)
    anew = together([dataclasses.replace(member(3, 1), token="anew")])
    lead.join(30)
    assert [roster[3].token for _, roster in [*results, *anew]] == ["anew"] * 4


def test_the_agents_store_of_torchrun_is_joined_not_served(monkeypatch) -> None:
    """torchrun's agent listens on MASTER_PORT already; after a restart of the ranks the old entries are still there."""
    import os
    from datetime import timedelta

    from torch.distributed import TCPStore

    agent = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=True, timeout=timedelta(seconds=1))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for restart in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        members = [dataclasses.replace(member(rank, rank // 2), token=f"{rank}-{restart}") for rank in range(4)]
        assert all(roster == members for _, roster in together(members)), "the same roster"
    del agent


def test_peers_name_a_dead_process_and_the_machine_of_an_address() -> None:
    import os

    child = os.fork()
    if child == 0:
        os._exit(0)
    members = [dataclasses.replace(member(rank, rank // 2), pid=os.getpid()) for rank in range(4)]
    members[1] = dataclasses.replace(members[1], pid=child)
    peers = Peers(members, 0)
    error = "gloo: [pair.cc:534] Connection closed by peer [10.9.8.1]:4321"
    time.sleep(0.2)
    assert peers.gone() == f"rank 1 on host0 (pid {child})" == peers.lost(error), "a zombie is dead"
    os.waitpid(child, 0)
    assert peers.gone() == f"rank 1 on host0 (pid {child})"
    assert Peers(members, 2).gone() == "", "of another machine nothing is known by pid"
    members[1] = dataclasses.replace(members[1], pid=os.getpid())
    assert Peers(members, 0).lost(error) == "host1 (ranks 2, 3)"
    assert Peers(members, 0).lost("NCCL error: remote process exited") == "another rank"

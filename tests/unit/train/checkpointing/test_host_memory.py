"""Copies in memory that the next save uses again. Every tensor stands for a GPU's."""

import ctypes
import os
import signal
from functools import partial

import torch

from moe.train.callbacks import saver
from moe.train.checkpointing import host_memory
from moe.train.checkpointing.checkpoints import STATE, load_state
from moe.train.checkpointing.composer_state import to_host
from moe.train.checkpointing.host_memory import HostMemory
from tests.unit.train.runs import SHORT, train

kept = partial(HostMemory, keeps=lambda tensor: True)


def large(dtype=torch.float32, *, number: int = 1) -> torch.Tensor:
    return torch.arange(3 * 200_000).view(3, 200_000).add(number).to(dtype)


def test_a_copy_holds_while_training_writes_and_the_next_one_takes_its_memory() -> None:
    weight, momentum, turned = large(), large(torch.bfloat16), large(number=7).t()
    step = torch.tensor(3.0)
    content = {"a": {"weight": weight, "turned": turned, "step": step, "name": ["x", 1]}, "b": (momentum, None)}
    memory, plain = kept(), to_host(content, HostMemory())
    first = to_host(content, memory)
    for tensor in (weight, momentum, turned, step):
        tensor.mul_(2).add_(1)
    for copied in (plain, first):
        assert torch.equal(copied["a"]["weight"], large()) and torch.equal(copied["a"]["turned"], large(number=7).t())
        assert torch.equal(copied["b"][0], large(torch.bfloat16)) and copied["a"]["step"] == 3
        assert copied["a"]["name"] == ["x", 1] and copied["b"][1] is None
    places = {value.data_ptr() for value in (first["a"]["weight"], first["a"]["turned"], first["b"][0])}
    del first
    second = to_host(content, memory)
    assert torch.equal(second["a"]["weight"], weight) and torch.equal(second["a"]["turned"], turned)
    assert torch.equal(second["b"][0], momentum) and second["a"]["step"] == 7
    assert {value.data_ptr() for value in (second["a"]["weight"], second["a"]["turned"], second["b"][0])} == places


def test_what_the_next_save_does_not_use_is_let_go() -> None:
    memory = kept()
    memory.copies([large(), large(torch.float64), large()])
    (again,) = memory.copies([large(number=5)])
    assert [each.data_ptr() for each in memory._kept] == [again.data_ptr()] and torch.equal(again, large(number=5))
    one, two = memory.copies([large(number=1), large(number=2)])
    assert torch.equal(one, large(number=1)) and torch.equal(two, large(number=2))


def test_tensors_of_a_cpu_and_small_ones_have_copies_of_their_own() -> None:
    for memory, tensor in ((HostMemory(), large()), (kept(), torch.ones(3))):
        (first,), (second,) = memory.copies([tensor]), memory.copies([tensor])
        assert first.data_ptr() != second.data_ptr() and not memory._kept


def test_a_loaders_process_does_not_get_the_memory() -> None:
    """Else a save would copy each page again that the fork shares, and take that much more."""
    (copied,) = kept().copies([large()])
    child = os.fork()
    if not child:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(copied.data_ptr(), 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


def test_checkpoints_written_from_kept_memory_hold_each_steps_own_state(tiny, tmp_path, monkeypatch) -> None:
    settings = [*SHORT, "max_duration=6ba", "save_interval=2ba", "save_num_checkpoints_to_keep=3", "eval_data=null"]
    _, plain = train(tiny, tmp_path, *settings, name="plain")
    monkeypatch.setattr(host_memory, "LEAST_BYTES", 1)
    monkeypatch.setattr(saver, "HostMemory", kept)
    code, folder = train(tiny, tmp_path, *settings, name="kept")
    assert code == 0
    for step in (2, 4, 6):
        here, there = (load_state(each / f"step-{step:08}" / STATE)["state"] for each in (folder, plain))
        for name in ("model", "optimizers"):
            assert_equal(here[name], there[name])


def assert_equal(here, there) -> None:
    if isinstance(here, dict):
        assert here.keys() == there.keys()
        for key in here:
            assert_equal(here[key], there[key])
    elif isinstance(here, torch.Tensor):
        assert torch.equal(here, there)

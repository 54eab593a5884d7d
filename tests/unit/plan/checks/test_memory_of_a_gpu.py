"""The line `memory` of the checklist, for a GPU that is played."""

import importlib.util
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from moe.config import load_config
from moe.plan.checks.memory import check_memory

YAML = Path(__file__).parents[4] / "yamls/500m.yaml"


@pytest.mark.parametrize(
    ("setting", "triton", "compiled"),
    [("auto", True, True), ("auto", False, False), ("true", False, True), ("false", True, False)],
)
def test_blocks_are_counted_as_compiled_where_they_will_be(monkeypatch, setting, triton, compiled) -> None:
    """Microbatch 32 takes 48 GB compiled and 61 eager, with what CUDA and the allocator need."""
    card = namedtuple("card", "name total_memory")("a card of 55 GB", 55 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    config = load_config(YAML, [f"compile={setting}", "device_train_microbatch_size=32"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
    found = check_memory(config, vocab_size=50257, ranks=1, launched=False)
    assert found.state == ("pass" if compiled else "warn"), found
    assert f"the largest microbatch that fits is {32 if compiled else 16}" in found.text

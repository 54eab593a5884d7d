"""A rank's process group as a run makes it."""

import os
from types import SimpleNamespace

import pytest
import torch

from moe.train.distributed import joining


@pytest.mark.parametrize(("on_gpu", "given", "used"), [(False, None, "0"), (False, "20", "20"), (True, None, None)])
def test_collectives_of_a_cpu_leave_no_record_that_nobody_reads(monkeypatch, on_gpu, given, used) -> None:
    """With 0 torch keeps none of 1 collective (tried once by hand), else each with Python's stack."""
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "")  # or what the code sets would stay
    monkeypatch.delenv("TORCH_FR_BUFFER_SIZE")
    if given:
        monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", given)
    seen = []
    monkeypatch.setattr(joining, "Peers", lambda *args: None)
    monkeypatch.setattr(joining, "meet", lambda *args, **kwargs: (torch.distributed.HashStore(), []))
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda *args, **kwargs: seen.append(os.environ.get("TORCH_FR_BUFFER_SIZE")),
    )
    monkeypatch.setattr("composer.utils.get_device", lambda name: type("", (), {"dist_backend": "gloo"}))
    joining.join(SimpleNamespace(start_timeout="1m"), on_gpu=on_gpu)
    assert seen == [used]

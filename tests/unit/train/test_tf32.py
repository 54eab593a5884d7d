"""Products in fp32 stay so on a GPU."""

import warnings

import pytest
import torch
from composer.devices import DeviceGPU
from composer.utils import get_device

from moe.train.tf32 import forbid_tf32


@pytest.fixture
def a_gpu(monkeypatch):
    """Composer's device can be made, and what it does to the flags and its defaults is undone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    default = dict(DeviceGPU.__init__.__kwdefaults__)
    DeviceGPU.__init__.__kwdefaults__["allow_tf32"] = True  # Composer's own; a run before in this process changed it
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags
    DeviceGPU.__init__.__kwdefaults__.update(default)


def test_no_device_that_composer_makes_allows_tf32(a_gpu) -> None:
    DeviceGPU()
    assert torch.backends.cuda.matmul.allow_tf32, "what Composer does by itself"
    forbid_tf32()
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    for make in (DeviceGPU, lambda: get_device("gpu"), lambda: get_device(None)):
        make()
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_the_compilers_advice_to_allow_it_is_not_printed_and_other_warnings_are(a_gpu, monkeypatch) -> None:
    from torch._inductor import compile_fx

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    compile_fx._warn_tf32_disabled.cache_clear()
    forbid_tf32()
    with warnings.catch_warnings(record=True) as seen:
        compile_fx._warn_tf32_disabled()
        warnings.warn("TensorFloat32 is another matter", UserWarning, stacklevel=1)
    compile_fx._warn_tf32_disabled.cache_clear()
    assert [str(warning.message) for warning in seen] == ["TensorFloat32 is another matter"]


def test_a_run_forbids_it_before_anything_is_built(tiny, tmp_path, monkeypatch) -> None:
    """In a whole run: when the model is built, and in the last step."""
    from moe.train import fit
    from moe.train.callbacks.console import Console
    from tests.unit.train.runs import SHORT, train

    seen = []
    flags = torch.backends.cuda.matmul.allow_tf32, dict(DeviceGPU.__init__.__kwdefaults__)
    plain_build, plain_end = fit.build_model, Console.batch_end

    def look(*args, plain, **kwargs):
        seen.append((torch.backends.cuda.matmul.allow_tf32, DeviceGPU.__init__.__kwdefaults__["allow_tf32"]))
        return plain(*args, **kwargs)

    monkeypatch.setattr(fit, "build_model", lambda *a, **k: look(*a, plain=plain_build, **k))
    monkeypatch.setattr(Console, "batch_end", lambda *a: look(*a, plain=plain_end))
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        DeviceGPU.__init__.__kwdefaults__["allow_tf32"] = True
        assert train(tiny, tmp_path, *SHORT, "max_duration=2ba")[0] == 0
    finally:
        torch.backends.cuda.matmul.allow_tf32 = flags[0]
        DeviceGPU.__init__.__kwdefaults__.update(flags[1])
    assert seen == [(False, False)] * 3

"""The Triton kernels: numbers on a GPU, else in Triton's interpreter; machine code for real GPUs by its compiler."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from moe.model.kernels import grouped_gemm
from moe.model.kernels.grouped_gemm import grouped_rows, grouped_weight

COUNTS = {
    "several tiles each": [70, 33, 130],
    "empty first, middle and last": [0, 40, 0, 0, 5, 0],
    "one takes all": [0, 0, 90],
    "a single row": [0, 1, 0, 0],
    "more experts than rows": [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    "no row": [0, 0],
    "a single expert": [50],
}


@pytest.fixture(autouse=True)
def where_triton_runs(request):
    """Tensors are made there; not those of the compiler's own test, which needs no device."""
    if "tmp_path" in request.fixturenames:
        yield
        return
    with torch.device(request.getfixturevalue("triton_device")):
        yield


def plain(x, w, counts):
    """Row by row in float64, without any grouping."""
    expert = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return (w.double()[expert] @ x.double()[:, :, None]).squeeze(2)


def inputs(counts, n_inner=20, n_cols=150, dtype=torch.float32):
    torch.manual_seed(0)
    counts = torch.tensor(counts)
    n_rows = int(counts.sum())
    x = torch.randn(n_rows, n_inner).to(dtype).requires_grad_()
    w = torch.randn(len(counts), n_cols, n_inner).to(dtype).requires_grad_()
    return x, w, counts, torch.randn(n_rows, n_cols).to(dtype)


@pytest.mark.parametrize("name", COUNTS)
def test_forward_and_both_gradients_equal_rows_times_their_matrix(name):
    x, w, counts, grad = inputs(COUNTS[name])
    out, exact = grouped_rows(x, w, counts), plain(x, w, counts)
    torch.testing.assert_close(out.double(), exact, atol=1e-4, rtol=1e-5)
    ours = torch.autograd.grad(out, (x, w), grad)
    for mine, right in zip(ours, torch.autograd.grad(exact, (x, w), grad.double()), strict=True):
        torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-5)


def test_bf16_inputs_are_summed_in_fp32():
    x, w, counts, grad = inputs([400], n_inner=256, n_cols=16, dtype=torch.bfloat16)
    out = grouped_rows(x, w, counts)
    assert out.dtype == torch.bfloat16
    # Products of bf16 numbers are exact in fp32; only the step to bf16 is left, which the interpreter cuts off (2^-7).
    torch.testing.assert_close(out.double(), plain(x, w, counts), atol=1e-4, rtol=2**-7)
    dw = grouped_weight(grad, x.detach(), counts)
    torch.testing.assert_close(dw[0].double(), grad.double().t() @ x.detach().double(), atol=1e-4, rtol=2**-7)


@pytest.mark.parametrize("mean_rows", [1, 20, 1000])
def test_every_height_of_a_tile_gives_the_same(monkeypatch, mean_rows):
    x, w, counts, _ = inputs([150, 0, 90])
    tile = grouped_gemm._tile(n_rows=mean_rows * 3, n_experts=3, itemsize=4)
    monkeypatch.setattr(grouped_gemm, "_tile", lambda **_: tile)
    torch.testing.assert_close(grouped_rows(x, w, counts).double(), plain(x, w, counts), atol=1e-4, rtol=1e-5)


def test_a_gradient_of_stride_zero_is_taken():
    x, w, counts, _ = inputs([30, 3])
    grouped_rows(x, w, counts).sum().backward()
    ours = x.grad, w.grad
    for mine, right in zip(ours, torch.autograd.grad(plain(x, w, counts).sum(), (x, w)), strict=True):
        torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-5)


def test_a_row_is_never_multiplied_by_a_neighbouring_expert():
    x, w, counts, _ = inputs([17, 5, 26])
    with torch.no_grad():
        before = grouped_rows(x, w, counts)
        w[1] = float("nan")
        after = grouped_rows(x, w, counts)
    assert torch.equal(before[:17], after[:17]) and torch.equal(before[22:], after[22:])
    assert after[17:22].isnan().all()


def test_rows_and_weight_are_sound_torch_library_ops():
    x, w, counts, grad = inputs([5, 0, 2], n_inner=8, n_cols=16)
    for op, args in (
        (grouped_rows, (x, w, counts)),
        (grouped_rows, (grad, w.detach(), counts, True)),
        (grouped_weight, (grad, x.detach(), counts)),
    ):
        assert set(torch.library.opcheck(op, args).values()) == {"SUCCESS"}


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from moe.model.kernels import grouped_gemm, triton_kernels

targets = [(80, "bf16", 2), (80, "fp32", 4), (90, "bf16", 2)]
targets += [(120, "bf16", 2)] * (tuple(int(n) for n in triton.__version__.split(".")[:2]) >= (3, 4))  # older: unknown
for capability, dtype, itemsize in targets:
    tile = grouped_gemm._tile(n_rows=10**6, n_experts=8, itemsize=itemsize)
    options = {key: tile.pop(key) for key in ("num_warps", "num_stages")}
    for kernel, blocks in (
        (triton_kernels.grouped_rows_kernel, {**tile, "BLOCK_J": 128}),
        (triton_kernels.grouped_weight_kernel, {"BLOCK_I": 128, "BLOCK_J": 128, "BLOCK_N": 64 // itemsize}),
    ):
        constants = {**blocks, "GROUPS": 8, "UPCAST": False, "x_inner": 1, "w_inner": 1}
        kinds = {"counts": "*i64"} | dict.fromkeys(("x", "w", "out", "a", "b"), "*" + dtype)
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
        constants = {name: value for name, value in constants.items() if name in names}
        whole = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in {*constants, "n_groups"}}
        source = ASTSource(kernel, signature, constants, whole)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        print(capability, dtype, kernel.fn.__name__, len(made.asm["cubin"]), made.metadata.shared)
"""


def test_kernels_compile_for_gpus_from_sm80_on_and_fit_their_shared_memory(tmp_path):
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {capability for capability, *_ in lines} >= {"80", "90"} and len(lines) % 2 == 0
    for *_, machine_code, shared in lines:
        assert int(machine_code) > 0
        assert int(shared) <= 99 * 1024  # what a block may have on sm86, sm89 and sm120, the least from sm80 on

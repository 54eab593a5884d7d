import copy
import io
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from moe.model import Transformer
from moe.model.flops import flops_per_token
from moe.optim import muon
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.optim.newton_schulz import COEFFICIENTS


def parameters(*shapes, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(*shape, generator=g).to(dtype)) for shape in shapes]


def set_gradients(params, step):
    g = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g).to(p.dtype)


def muon_group(params, **settings):
    return {"params": params, "kind": "muon", "lr": 0.02, "weight_decay": 0.1, **settings}


def plain_muon(weight, grads, *, lr, weight_decay, momentum):
    """One matrix in float64, from the papers' formulas: Nesterov, five polynomials, decay, scale."""
    weight, buffer = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for grad in grads:
        buffer = momentum * buffer + grad.double()
        x = grad.double() + momentum * buffer
        x = x / (1.01 * x.norm())
        for a, b, c in COEFFICIENTS:
            x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
        weight = weight - lr * weight_decay * weight - lr * 0.2 * math.sqrt(max(weight.shape)) * x
    return weight


def test_equals_a_plain_implementation_matrix_by_matrix():
    params = parameters((24, 16), (16, 40), (24, 16), (32, 32), (3, 16, 24))
    start = copy.deepcopy(params)
    optimizer, grads = Muon([muon_group(params)]), [[] for _ in params]
    for step in range(4):
        set_gradients(params, step)
        for p, kept in zip(params, grads, strict=True):
            kept.append(p.grad.clone())
        optimizer.step()
    for p, before, kept in zip(params, start, grads, strict=True):
        matrices = zip(p.view(-1, *p.shape[-2:]), before.view(-1, *p.shape[-2:]), strict=True)
        for i, (matrix, old) in enumerate(matrices):
            mine = [grad.view(-1, *p.shape[-2:])[i] for grad in kept]
            expected = plain_muon(old.detach(), mine, lr=0.02, weight_decay=0.1, momentum=0.95)
            torch.testing.assert_close(matrix.detach().double(), expected, atol=2e-5, rtol=1e-4)


def test_gate_and_up_of_every_expert_are_updated_as_if_each_stood_alone():
    (experts,) = parameters((3, 48, 16))
    alone = [nn.Parameter(half.clone()) for expert in experts.detach() for half in expert.chunk(2)]
    batched, single = Muon([muon_group([experts], split=2)]), Muon([muon_group([p]) for p in alone])
    for step in range(3):
        set_gradients([experts], step)
        for p, grad in zip(alone, [half for expert in experts.grad for half in expert.chunk(2)], strict=True):
            p.grad = grad.clone()
        batched.step()
        single.step()
    together = torch.stack([p.detach() for p in alone]).view_as(experts)
    torch.testing.assert_close(experts.detach(), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128), (4, 32, 96)])
def test_rms_of_an_update_is_a_fifth_of_the_rate(shape):
    (p,) = parameters(shape)
    before = p.detach().clone()
    set_gradients([p], 0)
    Muon([muon_group([p], weight_decay=0.0)]).step()
    rms = (p.detach() - before).square().mean().sqrt() / 0.02
    assert 0.17 < rms < 0.23


def test_original_scale_is_that_of_torch():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    (p,) = parameters((128, 32))
    group = muon_group([p], adjust_lr_fn="original", weight_decay=0.0)
    before = p.detach().clone()
    set_gradients([p], 0)
    peer = nn.Parameter(before.clone())
    peer.grad = p.grad.clone()
    Muon([group]).step()
    torch.optim.Muon([peer], lr=0.02, weight_decay=0.0, adjust_lr_fn="original").step()
    ours, theirs = p.detach() - before, peer.detach() - before
    # Other polynomials (torch's leave singular values at 0.7 to 1.2), the same scale: sqrt(128 / 32) = 2.
    assert 0.8 < ours.norm() / theirs.norm() < 1.4
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.95


def test_adamw_groups_equal_torch():
    ours, theirs = parameters((7, 5), (3,), (40, 8)), parameters((7, 5), (3,), (40, 8))
    settings = {"lr": 0.01, "betas": (0.8, 0.97), "eps": 1e-6}
    optimizer = Muon(
        [
            {"params": ours[:2], "kind": "adamw", "weight_decay": 0.3, **settings},
            {"params": ours[2:], "kind": "adamw", "weight_decay": 0.0, **settings},
        ]
    )
    peers = [{"params": theirs[:2], "weight_decay": 0.3}, {"params": theirs[2:], "weight_decay": 0.0}]
    peer = torch.optim.AdamW(peers, **settings)
    for step in range(5):
        for params in (ours, theirs):
            set_gradients(params, step)
        if step == 2:
            ours[1].grad = theirs[1].grad = None  # its bias correction falls one step behind
        for group in (*optimizer.param_groups, *peer.param_groups):
            group["lr"] = 0.01 * (step + 1)
        optimizer.step()
        peer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def mixed(**settings):
    params = parameters((16, 24), (16, 24), (2, 32, 16), (30, 8), (5,))
    groups = [
        muon_group(params[:2], name="muon", **settings),
        muon_group(params[2:3], name="muon_gate_up", split=2, **settings),
        {"params": params[3:], "name": "adamw", "kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
    ]
    return params, Muon(groups)


def test_parameters_without_gradient_are_left_alone():
    params, optimizer = mixed()
    set_gradients(params, 0)
    params[1].grad = params[4].grad = None
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert [torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [False, True, False, False, True]
    assert params[1] not in optimizer.state and params[4] not in optimizer.state


def test_no_gradient_anywhere_changes_nothing():
    params, optimizer = mixed()
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_gradients_survive_the_step():
    params, optimizer = mixed()
    set_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p.grad, old) for p, old in zip(params, before, strict=True))


@pytest.mark.parametrize("momentum_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_optimizer_continues_bit_for_bit(momentum_dtype, param_dtype):
    params, optimizer = mixed(momentum_dtype=momentum_dtype)
    for p in params:
        p.data = p.data.to(param_dtype)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"weights": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, fresh = mixed(momentum_dtype=momentum_dtype)
    for p, weight in zip(resumed, saved["weights"], strict=True):
        p.data = weight
    fresh.load_state_dict(saved["optimizer"])
    momentum = fresh.state[resumed[0]]["momentum"]
    assert momentum.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[momentum_dtype]
    for step in range(3, 6):
        for each, stepped in ((params, optimizer), (resumed, fresh)):
            set_gradients(each, step)
            stepped.step()
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))
    for a, b in zip(params, resumed, strict=True):
        for key, value in optimizer.state[a].items():
            assert value.dtype == fresh.state[b][key].dtype and torch.equal(value, fresh.state[b][key])


def test_all_of_a_loaded_state_lies_where_the_parameter_does():
    params, optimizer = mixed()
    set_gradients(params, 0)
    optimizer.step()
    with torch.device("meta"):
        elsewhere, fresh = mixed()
    fresh.load_state_dict(optimizer.state_dict())
    assert {value.device.type for p in elsewhere for value in fresh.state[p].values()} == {"meta"}


def test_bf16_momentum_follows_fp32_momentum():
    results = []
    for momentum_dtype in ("fp32", "bf16"):
        params, optimizer = mixed(momentum_dtype=momentum_dtype)
        start = [p.detach().clone() for p in params]
        for step in range(10):
            set_gradients(params, step)
            optimizer.step()
        results.append(torch.cat([(p.detach() - old).flatten() for p, old in zip(params[:3], start, strict=False)]))
    assert not torch.equal(*results)
    assert torch.cosine_similarity(*results, dim=0) > 0.999


@pytest.fixture
def orthogonalized(monkeypatch):
    """(shape, dtype) of each batch of matrices that is orthogonalised."""
    batches = []

    def note(x_NRC, plain=muon.orthogonalize):
        batches.append((tuple(x_NRC.shape), x_NRC.dtype))
        return plain(x_NRC)

    monkeypatch.setattr(muon, "orthogonalize", note)
    return batches


def test_matrices_of_one_shape_go_together_and_those_of_experts_alone(orthogonalized):
    params = parameters((24, 16), (16, 40), (24, 16), (3, 24, 16), (3, 24, 16))
    set_gradients(params, 0)
    Muon([muon_group(params)]).step()
    assert orthogonalized == [((n, r, c), torch.float32) for n, r, c in ((2, 24, 16), (1, 16, 40), *[(3, 24, 16)] * 2)]


@pytest.mark.skipif(
    torch.__version__ < "2.10", reason="older torch asks the driver when a fake tensor changes its dtype"
)
@pytest.mark.parametrize("momentum_dtype", ["fp32", "bf16"])
def test_on_a_gpu_the_iteration_runs_in_bf16_and_what_is_kept_stays_as_set(orthogonalized, momentum_dtype):
    """On tensors that claim to lie on a GPU and have no values: nor does the step wait for one."""
    with FakeTensorMode(), torch.device("cuda", 0):
        params = [nn.Parameter(torch.empty(24, 16)), nn.Parameter(torch.empty(3, 48, 16))]
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer = Muon([muon_group(params, momentum_dtype=momentum_dtype, split=2)])
        optimizer.step()
    assert orthogonalized == [((2, 12, 16), torch.bfloat16), ((6, 24, 16), torch.bfloat16)]
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16}[momentum_dtype]
    assert all(optimizer.state[p]["momentum"].dtype == kept and p.dtype == torch.float32 for p in params)


def test_muon_takes_under_two_percent_of_the_flops_of_a_500m_step_of_half_a_million_tokens():
    shape = {"vocab_size": 50257, "d_model": 768, "n_layers": 12, "n_heads": 12, "n_kv_heads": 4, "n_experts": 8}
    shape |= {"top_k": 2, "expert_hidden": 2048}
    with torch.device("meta"):
        model = Transformer(**shape, eos_id=0)
    optimizer = Muon([g for g in build_groups(model, name="muon", lr=1e-3, weight_decay=0.1) if g["kind"] == "muon"])
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    share = counter.get_total_flops() / (2**19 * flops_per_token(**shape, seq_len=2048))
    assert 0.01 < share < 0.02


def test_learning_rate_of_the_group_is_read_at_every_step():
    params, optimizer = mixed()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in params]
    set_gradients(params, 0)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_closure_is_run_with_gradients_and_its_loss_returned():
    (p,) = parameters((4, 4))
    optimizer = Muon([muon_group([p])])

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    expected = p.detach().square().sum()
    torch.testing.assert_close(optimizer.step(closure).detach(), expected)


def test_bad_groups_are_refused_by_name():
    with pytest.raises(ValueError, match=r"kind \('sgd'\)"):
        Muon([{"params": parameters((4, 4)), "kind": "sgd", "lr": 0.1}])
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        Muon([muon_group(parameters((4,)))])

import pytest
import torch

from moe.optim.newton_schulz import orthogonalize


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(3, 48, 48), (2, 64, 24), (2, 24, 64), (4, 1, 16)])
def test_singular_values_come_close_to_one(shape):
    singular = torch.linalg.svdvals(orthogonalize(random(*shape)))
    assert singular.min() > 0.6 and singular.max() < 1.14


def test_promised_range_of_singular_values_holds():
    singular = torch.logspace(-2.5, 0, 40, dtype=torch.float64)
    q1, q2 = (torch.linalg.qr(random(40, 40, seed=s, dtype=torch.float64)).Q for s in (1, 2))
    matrix = q1 @ torch.diag(singular) @ q2
    kept = singular / singular.norm() >= 0.002
    assert 20 < kept.sum() < 40
    result = torch.linalg.svdvals(orthogonalize(matrix[None])[0]).flip(0)
    assert result[kept].min() > 0.86 and result[kept].max() < 1.13


def test_singular_vectors_are_kept():
    u, _, vt = torch.linalg.svd(random(32, 48, dtype=torch.float64), full_matrices=False)
    x = u @ torch.diag(torch.linspace(1, 5, 32, dtype=torch.float64)) @ vt
    result = orthogonalize(x[None])[0]
    diagonal = u.t() @ result @ vt.t()
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), atol=1e-9, rtol=0)
    assert diagonal.diagonal().min() > 0.86


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1e8])
def test_scale_of_the_input_does_not_matter(factor):
    x = random(2, 16, 24)
    if factor < 1e-10:  # below the guard against division by zero the result shrinks, and stays finite
        assert torch.isfinite(orthogonalize(x * factor)).all()
    else:
        torch.testing.assert_close(orthogonalize(x * factor), orthogonalize(x), atol=1e-3, rtol=1e-3)


def test_zero_matrices_stay_zero_beside_others():
    x = random(3, 16, 8)
    x[1] = 0
    result = orthogonalize(x)
    assert result[1].abs().max() == 0
    torch.testing.assert_close(result[[0, 2]], orthogonalize(x[[0, 2]]))


def test_bf16_stays_in_the_range():
    singular = torch.linalg.svdvals(orthogonalize(random(2, 64, 128, dtype=torch.bfloat16)).float())
    assert singular.min() > 0.6 and singular.max() < 1.3

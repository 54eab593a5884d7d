"""Orthogonalisation of matrices by Newton-Schulz iteration with Polar Express coefficients.

- Every step applies an odd polynomial a x + b x^3 + c x^5 to the singular values; the five polynomials differ, each
  the best one for what the step before leaves (arXiv 2505.16932). Singular values of at least 0.002 of the Frobenius
  norm end between 0.86 and 1.13; smaller ones rise, but less.
- Products only, over a batch of matrices of one shape: `baddbmm` folds the polynomial's sums into the products.

Shapes: N matrices, R rows, C columns.
"""

import torch
from torch import Tensor

SAFETY = 1.01  # the coefficients assume exact arithmetic; a slightly smaller input keeps rounding from diverging
COEFFICIENTS = [
    (a / SAFETY, b / SAFETY**3, c / SAFETY**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    )
]


def orthogonalize(x_NRC: Tensor) -> Tensor:
    """U V^T for each matrix U S V^T, approximately: [N, R, C] in the input's dtype. Zeros stay zeros."""
    tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    x = x_NRC.mT if tall else x_NRC  # the Gram matrix is the smaller one
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    x = x * (1 / (SAFETY * norm + 1e-7)).to(x.dtype)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x

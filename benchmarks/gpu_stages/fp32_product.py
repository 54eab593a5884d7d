"""A callback for a real run: how exact a product in fp32 is there, after all that Composer has set."""

from __future__ import annotations

import torch
from composer import Callback, Logger, State

METRIC = "gpu/fp32_product_error"


class Fp32Product(Callback):
    """Logs the error of a product as large as the router's, against float64: 1e-4 and more where it is in TF32."""

    def batch_end(self, state: State, logger: Logger) -> None:
        device = next(state.model.parameters()).device
        a, b = (torch.randn(768, 768, device=device) for _ in range(2))
        exact = a.double() @ b.double()
        logger.log_metrics({METRIC: float(((a @ b).double() - exact).norm() / exact.norm())})

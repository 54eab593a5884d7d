"""A small model for the tests of moe/model, and the plain references they hold it against."""

from typing import Any

import pytest
import torch

import tests.tiny
from moe.model import Transformer

SHAPE: dict[str, Any] = {"vocab_size": 97, **tests.tiny.SHAPE}


@pytest.fixture
def shape() -> dict[str, Any]:
    return dict(SHAPE)


@pytest.fixture
def build():
    """build(seed=0, **changes): a Transformer of the small shape whose weights are large enough to matter."""

    def build(seed: int = 0, **changes: Any) -> Transformer:
        torch.manual_seed(seed)
        model = Transformer(**{"eos_id": 0, **SHAPE, **changes})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter.mul_(8)
        return model

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """[3, 20], with documents ending in EOS (id 0) at various places, one at the first and one at the last position."""
    tokens = torch.randint(1, 97, (3, 20), generator=torch.Generator().manual_seed(1))
    tokens[0, [5, 12]] = 0
    tokens[1, [0, 19]] = 0
    return tokens

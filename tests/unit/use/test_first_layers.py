"""Logits of a model that is too large for memory: those of its first layers, on both sides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.common.errors import RunFailed
from moe.use.export import first_layers, from_hf
from moe.use.export.from_hf import import_folder
from moe.use.export.to_hf import export

GLM: dict[str, Any] = {"scoring_func": "sigmoid", "balance": "sign", "first_k_dense_replace": 1, "dense_hidden": 40}
GLM |= {"qk_norm": "head", "n_shared_experts": 1}


@pytest.mark.parametrize(
    ("changes", "layers", "shard_bytes"),
    [({}, 1, 10**9), ({"tie_embeddings": False}, 1, 30_000), (GLM, 2, 30_000)],
    ids=["one file", "files", "a dense layer first"],
)
def test_an_import_asks_the_first_layers_of_each_kind(
    make_run: Callable, tmp_path: Path, monkeypatch, changes: dict[str, Any], layers: int, shard_bytes: int
) -> None:
    hf, said = tmp_path / "hf", []
    export(str(make_run(n_layers=3, **changes)), out=hf, shard_bytes=shard_bytes, say=lambda line: None)
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, "layer_types": ["full_attention"] * 3}))  # as transformers 5
    monkeypatch.setattr(first_layers, "MOST", 1)
    import_folder(str(hf), out=tmp_path / "back", say=said.append)
    (line,) = [line for line in said if line.startswith("verified")]
    assert f"of the first {layers} of 3 layers" in line
    assert [path.name for path in (tmp_path / "back").iterdir() if path.is_dir()] == ["step-00000000"]
    plain = from_hf.from_config

    def wrong(*args: Any) -> tuple[dict[str, Any], Any]:
        settings, family = plain(*args)
        return {**settings, "rope_theta": 50.0}, family

    monkeypatch.setattr(from_hf, "from_config", wrong)
    with pytest.raises(RunFailed, match="differ from ours"):
        import_folder(str(hf), out=tmp_path / "other", say=said.append)


def test_as_many_layers_are_asked_as_fit(monkeypatch) -> None:
    shapes = {"embed.weight": 1000, **{f"blocks.{layer}.moe.w2": 100 for layer in range(12)}}
    weights = {name: torch.empty(size, device="meta") for name, size in shapes.items()}
    for most, expected in ((4 * 2200, 12), (4 * 2199, 11), (4 * 1300, 3), (4 * 1299, 2), (0, 2)):
        monkeypatch.setattr(first_layers, "MOST", most)
        settings = {"n_layers": 12, "first_k_dense_replace": 1}
        assert first_layers.layers_that_fit(weights, settings) == expected

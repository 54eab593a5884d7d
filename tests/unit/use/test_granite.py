"""GraniteMoe's multipliers, folded into weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.common.errors import InputError, RunFailed
from moe.use.export import hf_weights, verify
from moe.use.export.from_hf import import_folder
from moe.use.export.to_hf import export
from moe.use.inference import find_checkpoint, load_model

MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 6.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
}


def quiet(line: str) -> None:
    pass


@pytest.fixture
def make_granite(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., tuple[Path, Any]]:
    def make(**changes: Any) -> tuple[Path, Any]:
        from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

        torch.manual_seed(0)
        sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
        config = GraniteMoeConfig(**{**sizes, "max_position_embeddings": 64, "initializer_range": 0.15, **changes})
        config.pad_token_id = None
        peer = GraniteMoeForCausalLM(config).eval()
        shutil.copytree(tokenizer_folder, tmp_path / "granite")
        peer.save_pretrained(tmp_path / "granite")
        return tmp_path / "granite", peer

    return make


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}], ids=str)
def test_a_folded_model_has_the_logits_of_the_original_and_is_exported_as_mixtral(
    make_granite: Callable, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder, peer = make_granite(**MULTIPLIERS, **changes)
    import_folder(str(folder), out=tmp_path / "run", say=quiet)
    checkpoint = find_checkpoint(str(tmp_path / "run"))
    assert checkpoint.manifest["config"]["model"]["tie_embeddings"] is False
    tokens = torch.randint(300, (2, 48), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        torch.testing.assert_close(load_model(checkpoint)(tokens), peer(tokens).logits, atol=1e-5, rtol=1e-5)
    export(str(tmp_path / "run"), out=tmp_path / "hf", say=quiet)
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["MixtralForCausalLM"]


def test_a_head_stays_tied_where_nothing_is_folded_into_it(make_granite: Callable, tmp_path: Path) -> None:
    more = {"residual_multiplier": 0.5, "attention_multiplier": 0.25}
    folder, _ = make_granite(tie_word_embeddings=True, embedding_multiplier=1.0, logits_scaling=1.0, **more)
    import_folder(str(folder), out=tmp_path / "run", say=quiet)
    model = load_model(find_checkpoint(str(tmp_path / "run")))
    assert "lm_head.weight" not in model.state_dict()


def test_a_multiplier_that_is_not_folded_is_noticed(make_granite: Callable, tmp_path: Path, monkeypatch) -> None:
    folder, _ = make_granite(**MULTIPLIERS)
    monkeypatch.setattr(hf_weights, "scale_of", lambda name, family: 1.0)
    with pytest.raises(RunFailed, match=r"embed_tokens\.weight: its values differ"):
        import_folder(str(folder), out=tmp_path / "run", say=quiet)
    monkeypatch.setattr(verify, "scale_of", lambda name, family: 1.0)
    with pytest.raises(RunFailed, match="logits differ from ours"):
        import_folder(str(folder), out=tmp_path / "run", say=quiet)


def test_multipliers_that_are_no_numbers_and_sizes_of_other_weights_are_named(
    make_granite: Callable, tmp_path: Path
) -> None:
    folder, _ = make_granite(**MULTIPLIERS)
    config = json.loads((folder / "config.json").read_text())
    wrong = {"logits_scaling": 0, "residual_multiplier": "x", "embedding_multiplier": True}
    for changes, told in (
        ({**wrong, "position_embedding_type": "nope"}, [*wrong, "position_embedding_type"]),
        ({"num_local_experts": 5, "intermediate_size": 48}, ["must be 4, as in the weights", "must be 24, as in the"]),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(InputError) as error:
            import_folder(str(folder), out=tmp_path / "run", say=quiet)
        assert all(word in str(error.value) for word in told)
    assert not (tmp_path / "run").exists()

"""An export and an import are held against their source value by value, whatever logits say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe.common.errors import RunFailed
from moe.model.families.qwen3_moe import QWEN3_MOE
from moe.use.export import from_hf, to_hf
from moe.use.export.from_hf import import_folder
from moe.use.export.to_hf import export, hf_tensors, write_weights
from moe.use.export.verify import same_bits, verify_tensors
from moe.use.inference import find_checkpoint, load_weights


def quiet(line: str) -> None:
    pass


def nudged(weight: torch.Tensor) -> torch.Tensor:
    """With the last bit of its last value changed."""
    other = weight.clone().contiguous()
    other.view(-1)[-1:].view(torch.int32).bitwise_xor_(1)
    return other


def test_the_least_change_of_one_value_in_any_tensor_is_found_and_named(make_run: Callable, tmp_path: Path) -> None:
    """E7: tensor by tensor, of a folder in several files."""
    weights = load_weights(find_checkpoint(str(make_run(tie_embeddings=False))))
    parts = hf_tensors(weights, QWEN3_MOE)
    write_weights(tmp_path, parts, shard_bytes=20_000, say=quiet)
    verify_tensors(tmp_path, parts)
    files = sorted(tmp_path.glob("*.safetensors"))
    tried = 0
    for path in files:
        right = load_file(path)
        for name, weight in right.items():
            save_file({**right, name: nudged(weight)}, path)
            with pytest.raises(RunFailed, match=rf"\n  {name}: its values in {path.name} differ"):
                verify_tensors(tmp_path, parts)
            tried += 1
        save_file(right, path)
    assert len(files) > 3 and tried == len(parts) == 2 * (8 + 1 + 3 * 4) + 3
    verify_tensors(tmp_path, parts)


def test_a_tensor_too_few_too_many_or_of_another_shape_or_type_is_found(make_run: Callable, tmp_path: Path) -> None:
    """E7: and a file that cannot be read."""
    weights = load_weights(find_checkpoint(str(make_run())))
    parts = hf_tensors(weights, QWEN3_MOE)
    write_weights(tmp_path, parts, shard_bytes=10**9, say=quiet)
    path, name = tmp_path / "model.safetensors", "model.norm.weight"
    right = load_file(path)
    errors = {
        "is missing": {key: weight for key, weight in right.items() if key != name},
        "is not expected": {**right, "model.more.weight": right[name].clone()},
        "its values": {**right, name: right[name].half()},
        "differ": {**right, name: right[name][None].clone()},
    }
    for told, tensors in errors.items():
        save_file(tensors, path)
        with pytest.raises(RunFailed, match=told):
            verify_tensors(tmp_path, parts)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(RunFailed, match=r"model.safetensors: cannot be read back"):
        verify_tensors(tmp_path, parts)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.experts.2.down_proj.weight"])
def test_an_export_with_one_value_changed_leaves_nothing(
    make_run: Callable, tmp_path: Path, monkeypatch, name: str
) -> None:
    """E7: so little that no logit tells."""
    run, plain = make_run(), to_hf.save_file

    def save(shard, path, **more):
        plain({key: nudged(weight) if key == name else weight for key, weight in shard.items()}, path, **more)

    monkeypatch.setattr(to_hf, "save_file", save)
    with pytest.raises(RunFailed, match=f"{name}: its values"):
        export(str(run), out=tmp_path / "hf", say=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("name", ["embed.weight", "blocks.1.moe.w2", "blocks.0.attn.k_norm.weight"])
def test_an_import_with_one_value_changed_leaves_nothing(
    make_run: Callable, tmp_path: Path, monkeypatch, name: str
) -> None:
    """E7's sibling: on the way back."""
    export(str(make_run()), out=tmp_path / "hf", say=quiet)
    plain = from_hf.write_step_zero

    def write(folder, weights, *more):
        return plain(folder, {**weights, name: nudged(weights[name])}, *more)

    monkeypatch.setattr(from_hf, "write_step_zero", write)
    with pytest.raises(RunFailed, match=f"in {name} of the checkpoint"):
        import_folder(str(tmp_path / "hf"), out=tmp_path / "back", say=quiet)
    assert not (tmp_path / "back").exists()


def test_there_and_back_every_bit_is_the_same(make_run: Callable, tmp_path: Path) -> None:
    """E5: -0.0 stays -0.0, the smallest numbers stay, in every tensor."""
    run = make_run(tie_embeddings=False)
    state_file = find_checkpoint(str(run)).state_file
    state = torch.load(state_file)
    for weight in state["state"]["model"].values():
        weight.view(-1)[:3] = torch.tensor([-0.0, 1e-45, -1e-45])
    from moe.train.checkpointing.checkpoints import write_checkpoint

    write_checkpoint(run, 11, state, find_checkpoint(str(run)).manifest)
    export(str(run), out=tmp_path / "hf", say=quiet)
    import_folder(str(tmp_path / "hf"), out=tmp_path / "back", say=quiet)
    before, after = (load_weights(find_checkpoint(str(folder))) for folder in (run, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.signbit(weight.view(-1)[0]) and same_bits(weight, after[name]), name


def test_bits_are_told_apart_where_values_are_equal() -> None:
    """E5: and a NaN is the same as itself, with what it carries."""
    zeros, nan = (
        torch.tensor([0.0, -0.0]),
        torch.tensor([0x7FC00001, 0x7FC00002], dtype=torch.int32).view(torch.float32),
    )
    assert not same_bits(zeros[:1], zeros[1:]) and torch.equal(zeros[:1], zeros[1:])
    assert same_bits(nan, nan.clone()) and not same_bits(nan[:1], nan[1:])
    assert not same_bits(zeros, zeros.half()) and not same_bits(zeros, zeros[None])
    assert same_bits(torch.empty(0, 3), torch.empty(0, 3)) and same_bits(zeros.bfloat16(), zeros.bfloat16())

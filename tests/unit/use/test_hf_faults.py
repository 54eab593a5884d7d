"""Hugging Face folders that are not what they should be: one message that names the error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moe.common.errors import InputError
from moe.use.export.from_hf import import_folder
from moe.use.export.to_hf import export
from tests.tiny import write_run

BAD: list[Any] = ["four", [1], {}, 0, -4, 3.5, True, 1_000_000_000]
# values of BAD that the key may have
GOOD: dict[str, list[Any]] = {
    "max_position_embeddings": [1_000_000_000],
    "rope_theta": [3.5, 1_000_000_000],
    "tie_word_embeddings": [True],
    "norm_topk_prob": [True],  # false is too, as a test of its own holds
    "pad_token_id": [0, -4],
    "rope_parameters": [{}],
    "rope_scaling": [{}],  # which transformers refuses
}
KEYS = (
    "architectures",
    "attention_bias",
    "decoder_sparse_step",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "layer_types",
    "max_position_embeddings",
    "mlp_only_layers",
    "model_type",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
DENSE_KEYS = ("head_dim", "intermediate_size", "num_hidden_layers", "vocab_size")


def quiet(line: str) -> None:
    pass


def exported(folder: Path, tokenizer_folder: Path, **changes: Any) -> Path:
    run = write_run(folder / "run", tokenizer_folder, **changes)
    export(str(run), out=folder / "hf", say=quiet, shard_bytes=30_000)
    return folder / "hf"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return exported(tmp_path_factory.mktemp("sound"), tokenizer_folder)


@pytest.fixture(scope="module")
def sound_dense(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return exported(tmp_path_factory.mktemp("dense"), tokenizer_folder, n_experts=1, top_k=1)


def copy_of(sound: Path, folder: Path, **changes: Any) -> Path:
    """A folder of links, with a config.json of its own."""
    folder.mkdir()
    for path in sound.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((sound / "config.json").read_text())
    if "rope_theta" in changes:
        config.pop("rope_parameters")  # which has the first word
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(InputError) as error:
        import_folder(str(folder), out=out, say=quiet)
    assert not out.exists() and not list(out.parent.glob(".*"))
    return str(error.value)


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_value_is_named_with_its_key(sound: Path, tmp_path: Path, key: str) -> None:
    tried = [
        value for value in BAD if not any(value == good for good in GOOD.get(key, []) if type(good) is type(value))
    ]
    assert len(tried) >= 6
    for number, value in enumerate(tried):
        told = refused(copy_of(sound, tmp_path / f"{number}", **{key: value}), tmp_path / "back")
        assert any(f"{key} ({shown})" in told for shown in (value, repr(value))), (value, told)
        assert ": must " in told


@pytest.mark.parametrize("key", DENSE_KEYS)
def test_a_wrong_value_of_a_dense_model_is_named_with_its_key(sound_dense: Path, tmp_path: Path, key: str) -> None:
    for number, value in enumerate(BAD):
        told = refused(copy_of(sound_dense, tmp_path / f"{number}", **{key: value}), tmp_path / "back")
        assert f"\n  {key} ({value!r}): must be " in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head_dim": 7}, "head_dim (7): must be even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads (3): must divide num_attention_heads (4)"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok (5): must be at most num_experts (4)"),
        ({"num_hidden_layers": 3}, "num_hidden_layers (3): must be 2, as in the weights"),
        ({"num_attention_heads": 8}, "num_attention_heads (8): must be 4, as in the weights"),
        ({"num_local_experts": 8}, "num_experts (4): must be num_local_experts (8)"),
        ({"layer_types": ["full_attention"]}, "full_attention throughout, once for each layer"),
        ({"rope_theta": float("nan")}, "rope_theta (nan): must be a number above 0"),
        (
            {"rope_theta": 500.0, "rope_parameters": {"rope_theta": 1e4}},
            "rope_theta (500.0): must be 10000.0, as beside",
        ),
        ({"rope_theta": None}, "rope_theta: is missing"),
    ],
)
def test_values_that_do_not_go_together_are_named(sound: Path, tmp_path: Path, changes: dict, told: str) -> None:
    assert told in refused(copy_of(sound, tmp_path / "hf", **changes), tmp_path / "back")


@pytest.mark.parametrize("changes", [{"torch_dtype": "four"}, {"auto_map": 7}])
def test_what_transformers_itself_does_not_take_is_an_error_of_the_folder(
    sound: Path, tmp_path: Path, changes: dict
) -> None:
    told = refused(copy_of(sound, tmp_path / "hf", **changes), tmp_path / "back")
    assert str(tmp_path / "hf") in told
    if not transformers.__version__.startswith("5"):  # which reads config.json for the tokenizer already
        assert f"--from-hf ({tmp_path / 'hf'}): transformers cannot load hf (" in told


@pytest.mark.parametrize("content", ["[1]", "7", "null", "[" * 100_000])
def test_a_config_that_is_no_object_is_told(sound: Path, tmp_path: Path, content: str) -> None:
    folder = copy_of(sound, tmp_path / "hf")
    (folder / "config.json").write_text(content)
    assert "config.json cannot be read (" in refused(folder, tmp_path / "back")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_that_is_not_finite_is_named(
    sound: Path, tmp_path: Path, tokenizer_folder: Path, value: float
) -> None:
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    folder = copy_of(sound, tmp_path / "hf")
    file = folder / json.loads((sound / "model.safetensors.index.json").read_text())["weight_map"][name]
    weights = load_file(file)
    weights[name][3, 5] = value
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    told = refused(folder, tmp_path / "back")
    assert "NaN or infinity" in told and told.splitlines()[1:] == [f"  {name}"]


def test_a_checkpoint_that_is_not_finite_is_no_error_of_transformers(tmp_path: Path, tokenizer_folder: Path) -> None:
    run = write_run(tmp_path / "run", tokenizer_folder)
    from moe.train.checkpointing.checkpoints import Checkpoint, load_state, read_checkpoint, write_checkpoint

    before: Checkpoint = read_checkpoint(run / "step-00000010")
    state = load_state(before.state_file)
    state["state"]["model"]["transformer.norm.weight"][7] = torch.nan
    write_checkpoint(run, 10, state, before.manifest)
    with pytest.raises(InputError, match=r"step-00000010: weights that hold NaN or infinity.*\n  norm.weight$"):
        export(str(run), out=tmp_path / "hf", say=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_shard_that_the_index_lists_and_is_not_there_is_named(sound: Path, tmp_path: Path) -> None:
    folder = copy_of(sound, tmp_path / "hf")
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    assert f"{lost.name} is missing, though model.safetensors.index.json lists it" in refused(folder, tmp_path / "back")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    assert "has no weights" in refused(folder, tmp_path / "back")


def test_a_file_that_the_index_does_not_list_takes_no_tensors_place(sound: Path, tmp_path: Path) -> None:
    """Averaged weights, say, beside the model's: what came last in the folder was imported, and was verified against
    itself where only the first layers are compared with transformers.
    """
    from moe.train.checkpointing.checkpoints import read_checkpoint
    from moe.train.checkpointing.contents import full_content

    folder, said = copy_of(sound, tmp_path / "hf"), list[str]()
    tensors = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    other = {name: value + 0.5 * ("layers.1." in name) for name, value in tensors.items()}
    save_file(other, folder / "z_averaged.safetensors")
    steps = [
        import_folder(str(source), out=tmp_path / name, say=said.append)
        for name, source in (("plain", sound), ("beside", folder))
    ]
    plain, beside = (full_content(read_checkpoint(step))["model"] for step in steps)
    assert plain.keys() == beside.keys() and all(torch.equal(plain[name], beside[name]) for name in plain)
    assert said.count("not read, as transformers does not: z_averaged.safetensors") == 1
    (folder / "model.safetensors.index.json").unlink()
    assert "both have" in (told := refused(folder, tmp_path / "back")) and "z_averaged.safetensors" in told

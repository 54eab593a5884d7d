"""Checkpoints that several ranks (gloo) write together: read by any number of them, complete or not there at all."""

import shutil
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from moe.common.typed_json import error_in
from moe.optim.muon import Muon
from moe.train.checkpointing.checkpoints import (
    CheckpointError,
    newest_checkpoint,
    read_checkpoint,
    step_folders,
    write_checkpoint,
)
from moe.train.checkpointing.contents import full_content, model_tensors
from moe.train.checkpointing.parts import (
    Divided,
    Parts,
    Rows,
    describe,
    error_in_parts,
    joined,
    part_name,
    write_part,
)
from tests.ranks import on_ranks
from tests.unit.train.checkpointing.ranks_that_share import (
    MANIFEST,
    assert_same,
    build,
    complete,
    load,
    save,
    step,
    tensors_of,
)

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="older torch is refused: moe.train.distributed.sharding"
)


def test_what_is_divided_along_one_dimension_is_read_along_any(tmp_path: Path) -> None:
    """A checkpoint of ranks that had complete experts, or rows or columns of each, for ranks that have others."""
    tensor = torch.arange(6 * 8 * 4, dtype=torch.float32).view(6, 8, 4)
    for dim, cuts in ((0, (1, 3, 2)), (1, (5, 3)), (2, (1, 1, 2))):
        files, described = {}, []
        first = 0
        for number, values in enumerate(tensor.split(cuts, dim)):
            part = {"model.w13": Rows(values.contiguous(), first, dim)}
            first += cuts[number]
            described.append(describe(part, {"model.w13": [6, 8, 4]}, part_name(number)))
            files[part_name(number)] = write_part(tmp_path / part_name(number), part)
        tensors = joined(described)
        assert error_in_parts(tensors, files) is None
        assert error_in({**tensors["model.w13"]}, Divided) is None
        with Parts(tmp_path, {"files": files, "tensors": tensors}) as parts:
            assert torch.equal(parts.rows("model.w13"), tensor)
            for along in range(3):
                for low, high in ((0, 2), (1, 4), (2, 3)):
                    rows = tensor.narrow(along, low, high - low)
                    found = torch.full_like(rows, -1.0)
                    parts.read("model.w13", low, found, along)
                    assert torch.equal(found, rows), (dim, along, low)
        if dim:
            tensors["model.w13"].pop("dim")  # an earlier version knows rows of the first dimension alone
            assert "rows" in str(error_in_parts(tensors, files))
            tensors["model.w13"]["dim"] = 3
            assert "has no shape" in str(error_in_parts(tensors, files))


def two_ranks(folder: Path, rank: int) -> None:
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    save(folder, 1, model, optimizer)
    expected = complete(model, optimizer)
    if rank == 0:
        torch.save(expected, folder / "expected")
    dcp_reads(folder / "step-00000001", model, optimizer, expected)


def dcp_reads(folder: Path, model: nn.Module, optimizer: Muon, expected: dict[str, torch.Tensor]) -> None:
    """torch's own reader gives the same tensors: of each rank its rows."""
    import torch.distributed.checkpoint as dcp

    wanted = {f"model.{name}": torch.zeros_like(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            if value.ndim:
                wanted[f"optimizer.{key}.{name}"] = torch.zeros_like(value)
    assert wanted.keys() == read_checkpoint(folder).manifest["tensors"].keys()
    dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    for name, value in wanted.items():
        assert torch.equal(value.full_tensor(), expected[name]), name


def four_ranks(folder: Path, rank: int) -> None:
    """2 to 4, then to 2 replicas of 2, each saving what it has loaded; and the other format."""
    expected = torch.load(folder / "expected")
    for replicas, number in ((1, 2), (2, 3)):
        model, optimizer = build(7, 4, replicas)
        if replicas == 2:
            step(model, optimizer, 7)  # one that is used has its own state
        load(folder / f"step-{number - 1:08d}", model, optimizer)
        assert_same(complete(model, optimizer), expected)
        assert optimizer.param_groups[0]["lr"] == 0.1
        save(folder, number, model, optimizer)
        assert len(list((folder / f"step-{number:08d}").glob("shard-*"))) == 4 // replicas
    model, optimizer = build(8, 4)
    load(folder / "step-00000009", model, optimizer)
    assert_same(complete(model, optimizer), expected)


def back_to_two(folder: Path, rank: int) -> None:
    """Of four ranks, and of one."""
    expected = torch.load(folder / "expected")
    for number, parts in ((2, 4), (9, 0)):
        assert len(list((folder / f"step-{number:08d}").glob("shard-*"))) == parts
        model, optimizer = build(6 + number, 2)
        load(folder / f"step-{number:08d}", model, optimizer)
        assert_same(complete(model, optimizer), expected)
        assert optimizer.param_groups[0]["lr"] == 0.1


def test_any_number_of_ranks_reads_either_format_and_so_does_dcp(tmp_path: Path) -> None:
    on_ranks(2, partial(two_ranks, tmp_path))
    expected = torch.load(tmp_path / "expected")
    found = read_checkpoint(tmp_path / "step-00000001")
    content = full_content(found)
    assert_same(tensors_of(content), expected)
    assert (found.path / "tokenizer/a").read_bytes() == b"A"
    small = torch.load(found.state_file, weights_only=True)["state"]["model"]
    assert {*small} == {"balance.share_LE", *(f"transformer.blocks.{n}.moe.router.bias_E" for n in (1, 2))}
    names = [name for name in expected if name.startswith("model.")]
    for scratch in (None, tmp_path):
        model = model_tensors(found, scratch)
        assert_same({f"model.{name}": value for name, value in model.items()}, {name: expected[name] for name in names})
    write_checkpoint(tmp_path, 9, {"state": content}, MANIFEST)  # as one rank has it
    on_ranks(4, partial(four_ranks, tmp_path))
    assert_same(tensors_of(full_content(read_checkpoint(tmp_path / "step-00000003"))), expected)
    on_ranks(2, partial(back_to_two, tmp_path))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    on_ranks(2, partial(two_ranks, folder))
    return folder


def test_a_part_that_is_damaged_or_gone_is_named_and_the_one_before_is_used(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "run")
    first, second = tmp_path / "run/step-00000001", tmp_path / "run/step-00000002"
    shutil.copytree(first, second)
    text = (second / "manifest.json").read_text()
    (second / "manifest.json").write_text(text.replace('"step": 1', '"step": 2'))
    part = second / part_name(1)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    found, errors = newest_checkpoint(step_folders(tmp_path / "run"))
    assert found is not None and found.step == 1
    assert str(errors[0]) == f"{part}: its bytes have changed since it was written (xxh64 differs)"
    unlooked = types.SimpleNamespace(**vars(read_checkpoint(second, hashes=False)), state_file=second / "state.pt")
    with pytest.raises(CheckpointError, match=r"shard-00002.*: its bytes have changed"):
        full_content(unlooked)
    part.unlink()
    with pytest.raises(CheckpointError, match=r"shard-00002.*is missing"):
        read_checkpoint(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["parts"].popitem(), r"tensors.model.transformer.embed.weight has 49 of 97 rows"),
        (lambda t: t["parts"][part_name(1)].reverse(), r"has rows up to 49, then \[48, 49\] in shard-00002"),
        (lambda t: t["parts"].update(other=[97, 0]), "lies in other, which is not in its files"),
        (lambda t: t.update(shape=[]), "has no shape"),
        (lambda t: t.update(parts={"a": "b"}), "tensors.model.transformer.embed.weight.parts.a is 'b'; a list"),
    ],
)
def test_a_manifest_that_does_not_say_where_all_rows_are_is_refused(written: Path, tmp_path: Path, change, message):
    import json

    shutil.copytree(written / "step-00000001", tmp_path / "step-00000001")
    path = tmp_path / "step-00000001/manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["tensors"]["model.transformer.embed.weight"])
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "step-00000001")


def test_no_rank_holds_more_than_its_share_at_build_save_and_load(tmp_path: Path) -> None:
    """1.5 times the share of weights, gradients and optimizer state, and the largest parameter, beyond the imports. The
    better of two: the kernel counts pages of libraries too, and under load takes them away and gives them again.
    """
    from benchmarks.sharded_memory import measure

    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            on_ranks(2, partial(measure, "small", 2, folder), fork=False)  # new processes: an old heap is not measured
            return
        except ProcessRaisedException:
            if number == 2:
                raise

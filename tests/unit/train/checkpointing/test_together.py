"""Checkpoints that several ranks (gloo) write together: read by any number of them, complete or not there at all."""

import errno
import multiprocessing
import os
import shutil
import signal
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing import ProcessRaisedException

from moe.common.errors import RunFailed
from moe.common.typed_json import error_in
from moe.model import Transformer
from moe.model.balance import BalanceLoss
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.train.checkpointing import files, together
from moe.train.checkpointing.checkpoints import (
    CheckpointError,
    newest_checkpoint,
    read_checkpoint,
    step_folders,
    write_checkpoint,
)
from moe.train.checkpointing.contents import full_content, model_tensors
from moe.train.checkpointing.host_memory import HostMemory
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
from moe.train.checkpointing.rank_state import load_own, own_state
from moe.train.checkpointing.remote import RemoteRun
from moe.train.checkpointing.save_error import SaveError, explained
from moe.train.checkpointing.together import Save, SharedWriter
from moe.train.distributed.sharding import shard_transformer
from tests.ranks import _rank, on_ranks
from tests.tiny import EVERY_OPTION, SHAPE

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="older torch is refused: moe.train.distributed.sharding"
)
MANIFEST = {"tokens": 5, "config": {}, "data": "d", "eos_id": 0, "vocab_size": 97, "tokenizer": None}


def build(seed: int, ranks: int, replicas: int = 1) -> tuple[nn.Module, Muon]:
    """A model as the trainer has it, with 3 experts, which are divided by their rows, and 97 rows of the embedding."""
    settings = {**SHAPE, **EVERY_OPTION, "n_experts": 3, "balance": "sign"}
    model = nn.Module()
    model.transformer = Transformer(vocab_size=97, eos_id=0, seed=seed, **settings)
    model.balance = BalanceLoss(n_layers=2, n_experts=3, weight=0.01)
    g = torch.Generator().manual_seed(seed)
    for buffer in model.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=g))
    if ranks > 1:
        shard_transformer(model.transformer, world_size=ranks, on_gpu=False, replicas=replicas)
    groups = build_groups(model.transformer, name="muon", lr=0.1, weight_decay=0.0, momentum_dtype="bf16")
    return model, Muon(groups)


def step(model: nn.Module, optimizer: Muon, seed: int) -> None:
    """With random gradients; of replicas the same, as they are after their mean was taken."""
    for number, p in enumerate(model.parameters()):
        own = p.to_local() if isinstance(p, DTensor) else p
        place = p.device_mesh.get_coordinate()[-1] if isinstance(p, DTensor) else 0
        g = torch.Generator().manual_seed(1000 * seed + 10 * number + place)
        grad = torch.randn(own.shape, generator=g)
        p.grad = (
            DTensor.from_local(grad, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            if isinstance(p, DTensor)
            else grad
        )
    optimizer.step()


def complete(model: nn.Module, optimizer: Muon) -> dict[str, torch.Tensor]:
    """All tensors of both, by name. A collective."""

    def full(value: torch.Tensor) -> torch.Tensor:
        return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()

    found = {f"model.{name}": full(value) for name, value in model.state_dict().items()}
    for name, p in model.named_parameters():
        found |= {f"optimizer.{key}.{name}": full(value) for key, value in optimizer.state[p].items()}
    return found


def tensors_of(content: dict) -> dict[str, torch.Tensor]:
    """The same of a checkpoint's content."""
    found = {f"model.{name}": value for name, value in content["model"].items()}
    for name, entries in content["optimizers"]["Muon"]["state"].items():
        found |= {f"optimizer.{key}.{name}": value for key, value in entries.items()}
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def save(folder: Path, number: int, model: nn.Module, optimizer: Muon, *, url=None, leader=False) -> together.Written:
    """One save as CheckpointSaver makes it."""
    own, rank = own_state(model, optimizer, HostMemory()), torch.distributed.get_rank()
    remote = None
    if url is not None and rank == 0:
        remote = RemoteRun(url, folder, report=print)
    writer = SharedWriter(folder, url=url, remote=remote, local_leader=leader or rank == 0)
    content = {"state": {"model": own.model, "optimizers": {"Muon": own.optimizer}}} if rank == 0 else None
    shared = Save(number, own.part, own.number, own.parts, own.shapes, content, MANIFEST, {"tokenizer/a": b"A"})
    explain = partial(explained, number, save_folder=folder, size=own.nbytes(), where=f"rank {rank}: ")
    return writer.write(shared, lambda size: None, explain)


def load(folder: Path, model: nn.Module, optimizer: Muon) -> None:
    found = read_checkpoint(folder)
    if found.manifest.get("tensors"):
        from moe.train.checkpointing.checkpoints import load_state

        with Parts(found.path, found.manifest) as parts:
            load_own(model, optimizer, load_state(found.state_file)["state"], parts)
    else:
        load_own(model, optimizer, full_content(found), None)


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


def failing(folder: Path, rank: int) -> None:
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    save(folder, 1, model, optimizer)
    for broken, stage in ((1, "write_part"), (0, "write_state"), (0, "commit")):
        plain = getattr(together, stage)

        def full(*args, broken=broken, plain=plain, stage=stage):
            if rank == broken and stage == "commit":
                raise OSError(errno.ENOSPC, "No space left on device")
            if rank == broken:  # the kernel says so, of the bytes that are written
                file = args[0] / "state.pt" if stage == "write_state" else args[0]
                file.symlink_to("/dev/full")
            return plain(*args)

        setattr(together, stage, full)
        with pytest.raises(SaveError, match=f"step 2 was not written to .*: rank {broken}: the disk is full"):
            save(folder, 2, model, optimizer)
        setattr(together, stage, plain)
        torch.distributed.barrier()
        assert [path.name for path in folder.iterdir() if "step" in path.name] == ["step-00000001"], stage
    save(folder, 2, model, optimizer)
    assert read_checkpoint(folder / "step-00000002").step == 2


def test_a_disk_that_is_full_for_one_rank_fails_the_save_on_all_and_leaves_nothing(tmp_path: Path) -> None:
    on_ranks(2, partial(failing, tmp_path))


def killed(folder: Path, rank: int) -> None:
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    save(folder, 1, model, optimizer)
    plain, pieces = files.SteadyFile.write, []

    def dies(self, content):
        pieces.append(content)
        if len(pieces) < 4:
            return plain(self, content)
        plain(self, content[: len(content) // 2])
        self.flush()
        (folder / "half").write_text(str(os.fstat(self.file.fileno()).st_size))
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        files.SteadyFile.write = dies
    with pytest.raises(RuntimeError, match="by peer"):
        save(folder, 2, model, optimizer)
    (folder / "raised").touch()
    os._exit(0)


def test_a_rank_that_is_killed_as_it_writes_its_part_ends_the_save_on_the_others(tmp_path: Path) -> None:
    context, store = multiprocessing.get_context("fork"), f"file://{tmp_path}/store"
    ranks = [context.Process(target=_rank, args=(rank, partial(killed, tmp_path), 2, store)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(60)
    assert [each.exitcode for each in ranks] == [0, -signal.SIGKILL]
    half = int((tmp_path / "half").read_text())
    assert 5000 < half < (tmp_path / "step-00000001" / part_name(1)).stat().st_size
    assert (tmp_path / "raised").exists() and not list(tmp_path.glob(".writing-*/*")), "the others remove it"
    found, _ = newest_checkpoint(step_folders(tmp_path))
    assert found is not None and found.step == 1


def apart(folder: Path, url: str, rank: int) -> None:
    """Each rank a machine of its own."""
    own = folder / f"machine{rank}"
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    with pytest.raises(RunFailed, match="is another folder here than on the first machine"):
        save(own, 1, model, optimizer, leader=True)
    assert not list(own.glob("*step*"))
    torch.distributed.barrier()
    own.mkdir(exist_ok=True)
    (own / ".writing-step-00000001").mkdir(exist_ok=rank == 0)  # a killed save has left it
    (own / ".writing-step-00000001/state.pt").touch()
    assert save(own, 2, model, optimizer, url=url, leader=True).keeps_house
    assert not list(own.glob("step*"))
    expected = complete(model, optimizer)
    if rank == 0:
        torch.save(expected, folder / "expected")
    else:
        assert not list(own.glob(".writing*"))


def late(folder: Path, url: str, rank: int) -> None:
    """Each rank a machine of its own, on a network file system that shows new names late."""
    together.MACHINES = 2
    plain, looks = together._identity, [0]

    def identity(path: Path) -> tuple[int, int]:
        looks[0] += 1
        return plain(path) if rank == 0 or looks[0] > 3 else (0, 0)

    together._identity = identity
    model, optimizer = build(1, 2)
    step(model, optimizer, 1)
    save(folder, 1, model, optimizer, leader=True)
    looks[0] = 0
    upload, exists = together.RemoteFolder.upload, Path.exists

    def shown(path: Path) -> bool:
        if "step-00000002/shard" in str(path):
            looks[0] += 1
        return looks[0] > 5 and exists(path)

    def send(self, path: Path, name: str) -> None:
        if rank == 1 and "shard" in name:
            assert looks[0] > 5, "renamed by rank 0 a moment ago"
        upload(self, path, name)

    Path.exists, together.RemoteFolder.upload = (shown if rank == 1 else exists), send
    assert not save(folder, 2, model, optimizer, url=url, leader=True).anew


def test_a_file_system_that_shows_a_new_folder_late_is_a_shared_one_all_the_same(tmp_path: Path, bucket: str) -> None:
    """Every such save failed, or on s3 took the folder for another."""
    url = f"{bucket}/run"
    RemoteRun(url, tmp_path, report=print).claim({"session": None})
    on_ranks(2, partial(late, tmp_path, url))
    assert [read_checkpoint(path).step for path in step_folders(tmp_path)] == [1, 2]
    assert RemoteRun(url, tmp_path, report=print).steps() == [2] and not list(tmp_path.glob(".writing*"))


def test_machines_without_a_common_folder_save_on_s3_alone_each_its_own_part(tmp_path: Path, bucket: str) -> None:
    url = f"{bucket}/run"
    RemoteRun(url, tmp_path, report=print).claim({"session": None})
    on_ranks(2, partial(apart, tmp_path, url))
    remote = RemoteRun(url, tmp_path / "third", report=print)
    assert remote.steps() == [2]
    assert_same(tensors_of(full_content(remote.fetch(2))), torch.load(tmp_path / "expected"))


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

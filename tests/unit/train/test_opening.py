"""Several ranks open one run: what each hashes and each machine fetches, and that all come to the same checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moe.cli.train import main
from moe.common.errors import InputError
from moe.common.s3 import RemoteFolder
from moe.config import load_config
from moe.train import opening, start
from moe.train.checkpointing import checkpoints, shares
from moe.train.checkpointing.checkpoints import has_files
from moe.train.checkpointing.parts import part_name
from moe.train.checkpointing.remote import RemoteRun, is_share
from moe.train.distributed import same_folder
from moe.train.inputs import check_data
from tests.ranks import on_ranks
from tests.tiny import divide, tiny_config, write_config

SETTINGS = ["save_interval=2ba", "scheduler.t_warmup=1ba", "scheduler.name=constant_with_warmup", "eval_data=null"]
PARTS = [part_name(number) for number in range(4)]


@pytest.fixture(scope="module")
def divided(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with steps 2 and 4 of four ranks that shared the model."""
    folder = tmp_path_factory.mktemp("divided")
    path = write_config(folder / "c.yaml", tiny_config(tiny))
    assert main([str(path), f"save_folder={folder / 'run'}", *SETTINGS, "max_duration=4ba"]) == 0
    for step in (2, 4):
        divide(folder / f"run/step-{step:08d}", 4)
    return folder / "run"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def opened(tiny: Path, save_folder: str, rank: int, ranks: int, machines: int = 1, *more: str) -> Any:
    """What `open_folder` gives on a rank; and the parts that it hashed, and the files that it fetched."""
    local = ranks // machines
    numbers = {"RANK": rank, "LOCAL_RANK": rank % local, "WORLD_SIZE": ranks, "MACHINES": machines}
    for module in (opening, start, shares, same_folder):
        for name, value in numbers.items():
            if hasattr(module, name):
                setattr(module, name, value)
    hashed: list[str] = []
    fetched: list[str] = []
    plain, download = checkpoints.hash_file, RemoteFolder.download

    def hash_file(path: Path) -> str:
        hashed.append(path.name)
        return plain(path)

    def fetch(self: RemoteFolder, name: str, path: Path) -> None:
        fetched.append(Path(name).name)
        download(self, name, path)

    checkpoints.hash_file = shares.hash_file = hash_file
    RemoteFolder.download = fetch  # type: ignore[method-assign]
    try:
        path = write_config(Path(f"c{rank}.yaml"), tiny_config(tiny))
        config = load_config(str(path), [f"save_folder={save_folder}", *SETTINGS, "max_duration=6ba", *more])
        folder, begin = opening.open_folder(config, check_data(config, report=lambda line: None))
    finally:
        checkpoints.hash_file = shares.hash_file = plain
        RemoteFolder.download = download  # type: ignore[method-assign]
    folder.let_go()
    return folder, begin, sorted({*hashed} & {*PARTS}), sorted({*fetched})


def damage(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)


def test_a_share_of_another_folder_is_hashed_by_each_rank_and_all_agree(
    tiny: Path, divided: Path, tmp_path: Path
) -> None:
    """Rank 0 hashed all of it, longer than the others wait for it."""
    run = tmp_path / "run"
    shutil.copytree(divided, run)
    ranks = partial(opened, tiny, str(run))

    def sound(rank: int) -> None:
        _, begin, hashed, _ = ranks(rank, 2)
        assert begin.step == 4 and hashed == PARTS[rank::2]

    on_ranks(2, sound)
    damage(run / "step-00000004" / PARTS[3])

    def damaged(rank: int) -> None:
        folder, begin, hashed, _ = ranks(rank, 2)
        assert begin.step == 2 == begin.load.step and hashed == PARTS[rank::2]
        if rank == 0:
            ((place, error),) = folder.found.broken
            assert place.name == "step-00000004" and f"{PARTS[3]}: its bytes have changed" in str(error)
        with pytest.raises(InputError, match=f"step-00000004/{PARTS[3]}: its bytes have changed"):
            ranks(rank, 2, 1, "resume_from=step:4")
        with pytest.raises(InputError, match=f"load_path: .*step-00000004/{PARTS[3]}: its bytes have changed"):
            opened(tiny, "new", rank, 2, 1, f"load_path={run / 'step-00000004'}")

    on_ranks(2, damaged)
    assert {path.name for path in run.glob("*step*")} == {"step-00000002", "step-00000004"}, "nothing is recorded yet"
    (run / "step-00000002").rename(run / ".replaced-step-00000002")  # a kill came between two renames

    def caught(rank: int) -> None:
        assert ranks(rank, 2, 2)[1].step == 2  # seen by the second machine too

    on_ranks(2, caught)


def test_from_s3_a_machine_fetches_the_parts_of_its_own_ranks(
    tiny: Path, divided: Path, tmp_path: Path, bucket: str
) -> None:
    """Each fetched all parts, and rank 0 kept the others waiting for them."""
    url = f"{bucket}/run"
    remote = RemoteRun(url, divided, report=print)
    for step in (2, 4):
        remote.upload(divided / f"step-{step:08d}")
    remote.claim({**json.loads((divided / "run.json").read_text()), "run_name": "tiny"})
    for name in ("config.yaml", "metrics.jsonl", "events.jsonl"):
        remote.store.upload(divided / name, name)

    def on_machine(rank: int, *more: str) -> Any:
        own = tmp_path / f"machine{rank // 2}"
        own.mkdir(exist_ok=True)
        os.chdir(own)
        return opened(tiny, url, rank, 4, 2, "parallelism.fsdp2=true", *more)

    def share(rank: int) -> None:
        place = Path("runs/tiny/step-00000004")
        for turn in range(2):
            _, begin, _, fetched = on_machine(rank)
            assert begin.step == 4
            first = rank // 2 * 2
            expected = PARTS[first : first + 2] if rank % 2 == 0 and (turn == 0 or rank == 0) else []
            assert [name for name in fetched if name in PARTS] == expected
        if rank == 2:
            assert is_share(place) and sorted(path.name for path in place.glob("shard-*")) == PARTS[2:]
        torch_barrier()
        _, begin, _, fetched = on_machine(rank, "parallelism.replicas=2")  # two shares, and four parts
        assert begin.step == 4 and [name for name in fetched if name in PARTS] == (PARTS if rank % 2 == 0 else [])
        if rank == 2:
            assert has_files(place, begin.load.manifest) and not is_share(place)

    on_ranks(4, share)
    store = RemoteFolder(url)
    content = bytearray(store.read(f"step-00000004/{PARTS[3]}") or b"")
    content[-1] ^= 1
    store.write(f"step-00000004/{PARTS[3]}", bytes(content))
    shutil.rmtree(tmp_path / "machine1")

    def damaged(rank: int) -> None:
        folder, begin, _, _ = on_machine(rank)
        assert begin.step == 2
        if rank == 0:
            assert folder.found.broken_remote == [4]

    on_ranks(4, damaged)


def torch_barrier() -> None:
    import torch.distributed

    torch.distributed.barrier()


@pytest.mark.parametrize("settings", [[], ["parallelism.fsdp2=true"]], ids=["DDP", "FSDP2"])
def test_over_machines_all_of_a_checkpoint_that_is_not_divided_is_read(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    """Each resume of DDP over machines ended in a division by the number of its parts, none."""
    monkeypatch.setattr(shares, "MACHINES", 2)
    monkeypatch.setattr(shares, "WORLD_SIZE", 2)
    config = load_config(tiny / "tiny.yaml", settings)
    assert shares.files_fetched(config, {"files": {"state.pt": {}}}) is None

"""A remote whose shards are not as its index says is named before the first step, with what to do."""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("moto.server")

import moe.common.s3
from moe.cli.main import main
from moe.common.errors import InputError
from moe.config import Config, load_config
from moe.train import inputs, remote_sizes
from moe.train.inputs import Inputs, streams_of
from tests.tiny import tiny_config, write_config
from tests.unit.data.bucket import BucketServer
from tests.unit.train.runs import train

SHORT = ["max_duration=1ba", "scheduler.t_warmup=0ba", "eval_data=null"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tiny: Path):
    """The tiny dataset on s3://corpus/data, and how to see to the server."""
    server = BucketServer()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.01)
    moe.common.s3._client.cache_clear()
    server.client().create_bucket(Bucket="corpus")
    for path in (tiny / "data").rglob("*"):
        if path.is_file():
            server.client().upload_file(str(path), "corpus", f"data/{path.relative_to(tiny / 'data')}")
    yield server
    moe.common.s3._client.cache_clear()
    server.close()


def inputs_of(config: Config) -> Inputs:
    streams = {"train_streams": streams_of(config.train_data), "eval_streams": streams_of(config.eval_data)}
    return Inputs(300, 0, "f", [], **streams)


def looked_at(config: Config) -> list[str]:
    return remote_sizes.check_remote_sizes(config, inputs_of(config))


def shards_of(tiny: Path) -> list[Path]:
    return sorted((tiny / "data" / "train").glob("*.mds"))


def on_bucket(cache: Path) -> list[str]:
    return [f"train_data.local={cache}", "train_data.remote=s3://corpus/data"]


def test_a_shard_of_another_size_on_a_bucket_is_named_before_anything_is_written(
    tiny: Path, tmp_path: Path, bucket: BucketServer, monkeypatch, capsys
) -> None:
    last = shards_of(tiny)[-1]
    size = last.stat().st_size
    bucket.client().put_object(Bucket="corpus", Key=f"data/train/{last.name}", Body=last.read_bytes()[:100])
    pages = monkeypatch_pages(monkeypatch, 2)
    code, folder = train(tiny, tmp_path, *SHORT, *on_bucket(tmp_path / "cache"))
    error = capsys.readouterr().err
    assert code == 2 and f"train/{last.name}: 100 bytes, index.json says {size}" in error, error
    assert "train_data.remote (s3://corpus/data): 1 of" in error and "Restore them there" in error
    assert not list(folder.glob("run.json")) and not list((tmp_path / "cache").rglob("*.mds")), "nothing has begun"
    assert len(pages) == 1, "by one paginated listing"
    config = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    settings = [f"save_folder={folder}", *SHORT, *on_bucket(tmp_path / "cache")]
    assert main(["check", str(config), *settings, "--fast"]) == 2
    out = capsys.readouterr().out
    assert f"{last.name}: 100 bytes" in out and "fail  data" in out
    bucket.client().upload_file(str(last), "corpus", f"data/train/{last.name}")
    assert main(["check", str(config), *settings, "--fast"]) == 0
    assert "sizes of all shards on the remote" in capsys.readouterr().out


def monkeypatch_pages(monkeypatch: pytest.MonkeyPatch, size: int) -> list[str]:
    """Pages of `size` files, and the folders that were listed."""
    from botocore.paginate import Paginator

    from moe.data.s3 import S3Folder

    listed: list[str] = []
    objects, pages = S3Folder._objects, Paginator.paginate
    monkeypatch.setattr(S3Folder, "_objects", lambda self: listed.append(str(self)) or objects(self))
    monkeypatch.setattr(
        Paginator, "paginate", lambda self, **asked: pages(self, **asked, PaginationConfig={"PageSize": size})
    )
    return listed


def test_a_bucket_that_cannot_be_listed_is_one_line_and_the_run_continues(
    tiny: Path, tmp_path: Path, bucket: BucketServer, capsys
) -> None:
    bucket.faults = lambda method, path, count: 403 if (method, path.rstrip("/")) == ("GET", "/corpus") else None
    settings = [*SHORT, *on_bucket(tmp_path / "cache")]
    code, _ = train(tiny, tmp_path, *settings)
    lines = [line for line in capsys.readouterr().out.splitlines() if "cannot be listed" in line]
    assert code == 0 and len(lines) == 1 and "refused (AccessDenied)" in lines[0] and bucket.failed == {"403": 1}
    config = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    found = looked_at(load_config(config, settings))
    assert len(found) == 1 and "each is verified as it arrives" in found[0]


def cut(shards: list[Path]) -> str:
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    return f"{shards[0].name}: {shards[0].stat().st_size} bytes"


def lost(shards: list[Path]) -> str:
    shards[-1].unlink()
    return f"{shards[-1].name}: missing"


@pytest.mark.parametrize("damage", [cut, lost])
@pytest.mark.parametrize("section", ["train_data", "eval_data"])
def test_a_folder_as_remote_is_looked_at_too(
    tiny: Path, tmp_path: Path, damage: Callable[[list[Path]], str], section: str
) -> None:
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    shutil.copytree(tiny / "data", remote)
    for name in ("train", "val"):
        (cache / name).mkdir(parents=True)
        shutil.copy(remote / name / "index.json", cache / name)
    split = {"train_data": "train", "eval_data": "val"}[section]
    shards = sorted((remote / split).glob("*.mds"))
    shutil.copy(shards[0], cache / split)
    shutil.copy(shards[-1], cache / split)
    named = damage(shards)
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    config = load_config(path, [f"{section}.local={cache}", f"{section}.remote={remote}"])
    assert looked_at(config) == [], "what is here is not fetched"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_sizes, "MACHINES", 2)
        (line,) = looked_at(config)
    assert f"{section}.remote ({remote}): not all" in line and "this machine needs none of them" in line
    for shard in (cache / split).glob("*.mds"):
        shard.unlink()
    with pytest.raises(InputError, match="Restore them there") as error:
        looked_at(config)
    assert f"{section}.remote ({remote}): 1 of" in str(error.value) and f"{split}/{named}" in str(error.value)


def test_an_ended_run_does_not_ask_for_its_remote(tiny: Path, tmp_path: Path, capsys) -> None:
    """A loop that starts it again must get 0, wherever the data has gone since."""
    away = shutil.copytree(tiny / "data", tmp_path / "away")
    settings = [*SHORT, f"train_data.local={tmp_path / 'cache'}", f"train_data.remote={away}"]
    assert train(tiny, tmp_path, *settings)[0] == 0
    shutil.rmtree(away / "train")
    for shard in (tmp_path / "cache/train").glob("*.mds"):
        shard.unlink()
    assert train(tiny, tmp_path, *settings)[0] == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert train(tiny, tmp_path, *settings, "max_duration=2ba")[0] == 2


def test_a_listing_that_takes_too_long_does_not_hold_a_start(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    end = threading.Event()
    monkeypatch.setattr(remote_sizes, "LONGEST", 0.1)
    monkeypatch.setattr(remote_sizes, "_listed", lambda folder: end.wait(30) and {})
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    config = load_config(path, [f"train_data.local={tmp_path}", f"train_data.remote={tiny / 'data'}"])
    wait = remote_sizes.begin_check(config, inputs_of(config))
    wait()
    end.set()
    assert "the remote is not listed after 0 s: the sizes of its shards are not checked" in capsys.readouterr().out


def test_small_files_are_fetched_once_on_a_machine_by_ranks_that_start_together(tmp_path: Path, monkeypatch) -> None:
    """Streaming's copy of a folder has one temporary name: two at a time took it from each other."""
    (tmp_path / "remote" / "train").mkdir(parents=True)
    (tmp_path / "remote" / "train" / "index.json").write_text("{}")
    copied: list[str] = []
    plain = shutil.copy

    def copy(source: str, to: str) -> str:
        copied.append(source)
        time.sleep(0.1)
        return plain(source, to)

    monkeypatch.setattr(shutil, "copy", copy)
    given = ("train_data", str(tmp_path / "remote"), "train/index.json", tmp_path / "cache")
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(inputs._fetch, *given) for _ in range(4)]:
            done.result()
    assert len(copied) == 1 and (tmp_path / "cache" / "train" / "index.json").read_text() == "{}"

"""Output on a bucket: the same bytes, whatever happens on the way."""

import os
import re
from functools import partial

import pytest

import moe.common.s3

pytest.importorskip("moto.server")

from streaming import StreamingDataset

from moe.cli import inspect
from moe.cli.main import main
from moe.common.errors import InputError
from moe.data import s3
from moe.data.locations import open_folder
from moe.data.read.shared_prefix import with_a_free_number
from moe.data.text import planning
from moe.data.write import merge, state, unit
from moe.data.write.convert import convert
from moe.data.write.shards import ShardFormat
from moe.data.write.unit import Job
from tests.unit.data.bucket import KEY, SECRET, BucketServer
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet

OUT = "s3://corpus/sets/tiny"
write = unit.make_unit


@pytest.fixture(scope="module")
def server():
    started = BucketServer()
    yield started
    started.close()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """An empty bucket `corpus`, and scratch folders under tmp_path/tmp."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(s3.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(s3, "pause", lambda attempt, asked: 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.01)
    moe.common.s3._client.cache_clear()
    server.faults = lambda method, path, count: None
    server.requests.clear()
    server.failed.clear()
    server.client().create_bucket(Bucket="corpus")
    yield server
    server.faults = lambda method, path, count: None
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    moe.common.s3._client.cache_clear()
    open_folder("s3://corpus/sets").delete()
    server.client().delete_bucket(Bucket="corpus")
    moe.common.s3._client.cache_clear()


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Units that have full shards, rests and tails."""
    monkeypatch.setattr(planning, "UNIT_BYTES", 6000)
    layout = property(lambda job: ShardFormat(seq_len=job.seq_len, dtype=job.dtype, size_limit=2000))
    monkeypatch.setattr(Job, "layout", layout)
    for i in range(2):
        write_parquet(tmp_path / "text" / f"{i}.parquet", make_texts(100, seed=i), rows_per_group=20)
    return tmp_path / "text"


@pytest.fixture
def local(text, make_request, tmp_path):
    """The bytes of a conversion to this machine's disk."""
    convert(make_request(out=tmp_path / "local"))
    return folder_bytes(tmp_path / "local")


def test_bucket_gets_the_bytes_of_a_local_conversion_and_nothing_else_stays(bucket, local, make_request, tmp_path):
    convert(make_request(out=OUT))
    assert len(local) > 8
    assert bucket.dataset("corpus", "sets/tiny") == local
    assert bucket.files("corpus", "sets/tiny.partial") == {}
    assert not list((tmp_path / "tmp").iterdir())


def test_limit_inside_a_unit_and_a_raised_val_fraction_give_the_local_bytes(bucket, text, make_request, tmp_path):
    for number, changes in enumerate(({"max_documents": 73}, {"val_fraction": 0.00001})):
        convert(make_request(out=tmp_path / f"local{number}", **changes))
        convert(make_request(out=f"{OUT}{number}", **changes))
        assert bucket.dataset("corpus", f"sets/tiny{number}") == folder_bytes(tmp_path / f"local{number}")


@pytest.mark.parametrize("fault", [503, 500, "drop", "cut"])
def test_every_request_may_fail_once(bucket, local, make_request, fault):
    bucket.faults = lambda method, path, count: fault if count == 1 and (fault != "cut" or method == "GET") else None
    convert(make_request(out=OUT))
    bucket.faults = lambda method, path, count: None
    assert bucket.dataset("corpus", "sets/tiny") == local
    assert bucket.failed[str(fault)] > 10


def test_units_on_the_bucket_are_not_made_again_by_another_machine(bucket, local, make_request, monkeypatch):
    made = []
    monkeypatch.setattr(unit, "make_unit", lambda *given: made.append(given[1].name) or write(*given))
    mark = "00001-0000000000000/done.json"
    bucket.faults = lambda method, path, count: 403 if method == "PUT" and path.endswith(mark) else None
    with pytest.raises(InputError, match="refused"):
        convert(make_request(out=OUT))
    bucket.faults = lambda method, path, count: None
    there = bucket.names("corpus", "sets/tiny.partial/units/00001-0000000000000")
    assert len(there) >= 4 and not any(name.endswith(mark) for name in there)  # the mark comes last
    first, made[:] = list(made), []
    assert convert(make_request(out=OUT)) is not None
    assert len(first) >= 2 and first[-1] == made[0]
    assert not set(first[:-1]) & set(made)
    assert bucket.dataset("corpus", "sets/tiny") == local


def test_merge_that_was_cut_off_is_done_again(bucket, local, make_request, monkeypatch):
    finish = merge.ShardSequence.finish
    monkeypatch.setattr(merge.ShardSequence, "finish", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(make_request(out=OUT))
    assert "meta.json" not in bucket.files("corpus", "sets/tiny")
    monkeypatch.setattr(merge.ShardSequence, "finish", finish)
    convert(make_request(out=OUT))
    assert bucket.dataset("corpus", "sets/tiny") == local


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("complete", [True, False])
def test_a_half_merged_result_goes_with_the_work_it_is_of(
    bucket, text, make_request, tmp_path, monkeypatch, overwrite, complete
):
    """The mark of it went alone: what was left in <out> was then nobody's, and the same command refused."""
    with monkeypatch.context() as killed:
        if complete:  # killed after meta.json, before the work was removed
            killed.setattr(state.BucketWorkspace, "publish", lambda space: 1 / 0)
        else:
            killed.setattr(merge.ShardSequence, "finish", lambda shards: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(make_request(out=OUT))
    before = bucket.dataset("corpus", "sets/tiny")
    assert before and ("meta.json" in before) == complete
    with monkeypatch.context() as killed:
        killed.setattr("moe.data.write.convert.settle", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(make_request(out=OUT, seed=5, overwrite=True))
    assert bucket.dataset("corpus", "sets/tiny") == (before if complete else {}), (
        "what is complete stays till the merge"
    )
    convert(make_request(out=OUT, seed=5, overwrite=overwrite or complete))
    convert(make_request(out=tmp_path / "local", seed=5))
    assert bucket.dataset("corpus", "sets/tiny") == folder_bytes(tmp_path / "local")


@pytest.mark.parametrize("removed", [0, 1, 2, 9, -2, -1])
def test_a_conversion_that_is_killed_while_it_removes_its_work_is_complete(
    bucket, local, make_request, monkeypatch, capsys, removed
):
    """The plan went before other objects: what was complete was then refused."""
    publish = state.BucketWorkspace.publish

    def killed(space):
        left = removed % len(space.partial.sizes())

        def delete(folder, names=None):
            nonlocal left
            for name in names:
                if not left:
                    raise KeyboardInterrupt
                left -= 1
                real(folder, [name])

        real = s3.S3Folder.delete
        with monkeypatch.context() as killing:
            killing.setattr(s3.S3Folder, "delete", delete)
            publish(space)

    monkeypatch.setattr(state.BucketWorkspace, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(make_request(out=OUT))
    convert(make_request(out=OUT))
    assert "nothing to do" in capsys.readouterr().out
    assert bucket.dataset("corpus", "sets/tiny") == local and bucket.files("corpus", "sets/tiny.partial") == {}


def test_three_shards_and_a_merge_from_machines_that_share_only_the_bucket(bucket, local, make_request):
    for index in (2, 0, 1):
        convert(make_request(out=OUT, shard_index=index, num_shards=3))
    convert(make_request(out=OUT, merge_only=True))
    assert bucket.dataset("corpus", "sets/tiny") == local


def test_complete_and_foreign_folders_are_left_alone_and_overwrite_replaces_all(bucket, local, make_request, capsys):
    convert(make_request(out=OUT))
    convert(make_request(out=OUT))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"seed: 17 then, 5 now"):
        convert(make_request(out=OUT, seed=5))
    assert bucket.dataset("corpus", "sets/tiny") == local
    convert(make_request(out=OUT, max_documents=30, overwrite=True))
    assert len(bucket.files("corpus", "sets/tiny")) < len(local)
    bucket.client().put_object(Bucket="corpus", Key="sets/thesis/a.tex", Body=b"years of work")
    with pytest.raises(InputError, match="holds something else"):
        convert(make_request(out="s3://corpus/sets/thesis", overwrite=True))


def test_folders_that_were_made_in_a_console_are_no_files(bucket, local, make_request, capsys):
    """An object without content whose name ends in a slash: --out held "something else", or strangers."""
    for name in ("tiny/", "tiny/train/", "tiny.partial/", "tiny.partial/units/"):
        bucket.client().put_object(Bucket="corpus", Key=f"sets/{name}", Body=b"")
    convert(make_request(out=OUT))
    there = bucket.dataset("corpus", "sets/tiny")
    assert {name: there[name] for name in there if not name.endswith("/") and name} == local
    convert(make_request(out=OUT))
    assert "nothing to do" in capsys.readouterr().out
    assert main(["inspect", OUT]) == 0
    convert(make_request(out=OUT, seed=5, overwrite=True))


def test_inspect_reads_the_bucket(bucket, text, make_request, capsys):
    convert(make_request(out=OUT))
    capsys.readouterr()
    assert main(["inspect", OUT]) == 0
    out = capsys.readouterr().out
    assert (
        "verified     sizes and xxh64 of all shards" in out and inspect.BOUNDARY in out and f"folder       {OUT}" in out
    )
    key = "sets/tiny/train/shard.00000.mds"
    content = bucket.client().get_object(Bucket="corpus", Key=key)["Body"].read()
    bucket.client().put_object(Bucket="corpus", Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
    assert main(["inspect", OUT, "--sequences", "0"]) == 2
    assert "shard.00000.mds: its bytes changed" in capsys.readouterr().out


def test_streaming_reads_what_lies_there(bucket, text, make_request, tmp_path):
    meta = convert(make_request(out=OUT))
    copy = str(tmp_path / "copy")
    dataset = with_a_free_number(partial(StreamingDataset, remote=f"{OUT}/train", local=copy, batch_size=1))
    assert meta is not None and dataset.num_samples == meta.samples["train"]
    assert len(dataset[0]["tokens"]) == meta.seq_len


@pytest.mark.parametrize(
    ("out", "environment", "message"),
    [
        ("s3://nowhere/a", {}, "s3://nowhere/a: no such bucket; create it"),
        ("s3://corpus", {}, "name a bucket and a folder in it"),
        ("gs://corpus/a", {}, "a path or s3://bucket/prefix is needed"),
        ("s3://No_Bucket!/a", {}, "not a bucket's name"),
        (OUT, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials; set AWS_ACCESS_KEY_ID"),
        (OUT, {"S3_ENDPOINT_URL": "not an address"}, "S3_ENDPOINT_URL: Invalid endpoint"),
        (OUT, {"S3_ENDPOINT_URL": f"http://{KEY}:hidden@127.0.0.1:9"}, "Could not connect to the endpoint URL"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_told_without_secrets(
    bucket, text, make_request, monkeypatch, out, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        convert(make_request(out=out))
    assert SECRET not in str(caught.value) and "hidden" not in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize("status", [403, 503])
def test_refusals_and_a_bucket_that_never_recovers_are_told(bucket, text, make_request, monkeypatch, status):
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    bucket.faults = lambda method, path, count: status if method == "PUT" else None
    expected = "check the credentials" if status == 403 else "run the same command again"
    with pytest.raises(InputError, match=expected):
        convert(make_request(out=OUT))


def test_old_data_that_may_not_be_removed_stops_the_merge(bucket, text, make_request):
    convert(make_request(out=OUT))
    before = bucket.dataset("corpus", "sets/tiny")
    bucket.faults = lambda method, path, count: "kept" if method == "POST" else None
    with pytest.raises(InputError, match=r"s3://corpus/a/b cannot be removed \(AccessDenied\); allow s3:DeleteObject"):
        convert(make_request(out=OUT, seed=5, overwrite=True))
    assert bucket.dataset("corpus", "sets/tiny") == before


def test_scratch_of_a_killed_process_is_removed_and_that_of_a_living_one_kept(bucket, text, make_request, tmp_path):
    dead = tmp_path / "tmp" / f"{s3.SCRATCH}dead"
    foreign = tmp_path / "tmp" / f"{s3.SCRATCH}notes"  # a name like ours is no proof
    for folder in (dead, foreign):
        folder.mkdir()
        (folder / "train.00000.mds").write_bytes(b"half a shard")
    (dead / s3.SCRATCH_MARK).touch()
    for folder in (dead, foreign):
        os.utime(folder, (0, 0))
    with open_folder("s3://corpus/sets/other").scratch("living") as living:
        os.utime(living.parent, (0, 0))
        convert(make_request(out=OUT))
        assert living.is_dir() and foreign.is_dir() and not dead.exists()

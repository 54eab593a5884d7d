import gzip
import json
import random
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import huggingface_hub.constants
import pytest

from moe.common.errors import InputError
from moe.data import hub, hub_client
from moe.data.text import sources
from moe.data.text.files import SourceFile
from moe.data.text.tables import open_parquet
from moe.data.write.convert import convert
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet
from tests.unit.data.hub_server import SHA, Hub

FINEWEB = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
"""
OPENWEBTEXT = """---
dataset_info:
  config_name: plain_text
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  default: true
---
"""


@pytest.fixture
def folders(tmp_path):
    """FineWeb's, FineWeb-Edu's and OpenWebText's layouts, small."""
    root = tmp_path / "repos"
    for name in ("fineweb", "fineweb-edu"):
        for i in range(3):
            path = root / name / "sample" / "10BT" / f"{i:03}_00000.parquet"
            write_parquet(path, make_texts(120, seed=i), rows_per_group=25, url=["u" * 300] * 120)
        write_parquet(root / name / "data" / "CC-MAIN-2013-20" / "000.parquet", make_texts(30, seed=9))
        (root / name / "README.md").write_text(FINEWEB)
    write_parquet(root / "openwebtext" / "plain_text" / "train-00000-of-00001.parquet", make_texts(50, seed=4))
    (root / "openwebtext" / "README.md").write_text(OPENWEBTEXT)
    lines = [json.dumps({"text": text}) + "\n" for text in make_texts(80, seed=6)]
    (root / "plain").mkdir()
    (root / "plain" / "a.jsonl").write_text("".join(lines))
    with gzip.open(root / "plain" / "b.jsonl.gz", "wt") as file:
        file.writelines(lines)
    return root


@pytest.fixture
def serve(folders, monkeypatch):
    """Start the stand-in with given faults, and let everything speak to it."""
    started = []

    def start(faults=lambda path, count: None) -> Hub:
        server = Hub(
            {
                "HuggingFaceFW/fineweb": folders / "fineweb",
                "HuggingFaceFW/fineweb-edu": folders / "fineweb-edu",
                "Skylion007/openwebtext": folders / "openwebtext",
                "some/plain": folders / "plain",
            },
            faults,
        )
        started.append(server)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(hub_client, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        return server

    yield start
    for server in started:
        server.close()


def local_bytes(folders, name, make_request, tmp_path, **changes):
    convert(make_request(dataset=(str(folders / name),), out=tmp_path / "local", **changes))
    return shard_bytes(tmp_path / "local")


def shard_bytes(folder):
    return {name: content for name, content in folder_bytes(folder).items() if name != "meta.json"}


@pytest.mark.parametrize(
    ("name", "folder", "config"),
    [
        ("HuggingFaceFW/fineweb", "fineweb", "sample-10BT"),
        ("HuggingFaceFW/fineweb-edu", "fineweb-edu", None),
        ("Skylion007/openwebtext", "openwebtext", None),
        ("some/plain", "plain", None),
    ],
)
def test_hub_dataset_gives_the_bytes_of_its_files(folders, serve, make_request, tmp_path, name, folder, config):
    serve()
    meta = convert(make_request(dataset=(name,), config=config))
    assert meta.revision == SHA and meta.dataset == name
    assert shard_bytes(tmp_path / "out") == local_bytes(folders, folder, make_request, tmp_path, config=config)


def test_small_parquet_files_are_fetched_once_for_each_pass(serve, make_request):
    server = serve()
    convert(make_request(dataset=("HuggingFaceFW/fineweb",), config="sample-10BT"))
    per_file = {path: count for path, count in server.requests.items() if path.endswith(".parquet")}
    # plan, encoder's check, unit; the first also for its ids
    assert [per_file[path] for path in sorted(per_file)] == [4, 3, 3]


def test_wide_columns_that_are_not_wanted_stay_on_the_server(folders, serve):
    path = folders / "fineweb" / "wide.parquet"
    noise = [random.Random(i).randbytes(20_000).hex() for i in range(400)]
    write_parquet(path, make_texts(400), rows_per_group=100, raw=noise)
    server = serve()
    name = f"datasets/HuggingFaceFW/fineweb/resolve/{SHA}/wide.parquet"
    file = SourceFile("wide.parquet", name, "parquet", path.stat().st_size, "1", remote=True)
    with open_parquet(file, block_bytes=1 << 16) as parquet:
        table = parquet.read(columns=["text", "id"])
    assert table["text"].to_pylist() == make_texts(400)
    assert sum(count for _, _, count, _ in server.ranges) < path.stat().st_size / 5


def test_stream_gives_any_bytes_of_the_file_whatever_fails(folders, serve):
    serve(lambda path, count: ["503", "drop", "cut", "short"][count % 4] if count % 3 == 0 else None)
    path = folders / "plain" / "a.jsonl"
    content = path.read_bytes()
    file = hub.HubFile(f"datasets/some/plain/resolve/{SHA}/a.jsonl", len(content), block_bytes=700)
    draw = random.Random(0)
    for _ in range(60):
        start, count = draw.randrange(len(content)), draw.randrange(3000)
        file.seek(start)
        got = b""
        while len(got) < count and (part := file.read(count - len(got))):
            got += part
        assert got == content[start : start + count]
    file.seek(-10, 2)
    assert file.read(100) == content[-10:]


FAULTS = ["429", "503", "drop", "cut", "short", "stall"]


def test_faults_of_every_kind_lose_and_double_no_row(folders, serve, make_request, tmp_path):
    def faults(path, count):
        """Each file fails twice, otherwise; the api and the README once."""
        number = sum(map(ord, path))
        return FAULTS[(number + count) % len(FAULTS)] if count <= (2 if path.endswith(".parquet") else 1) else None

    server = serve(faults)
    meta = convert(make_request(dataset=("HuggingFaceFW/fineweb",), config="sample-10BT"))
    assert sum(meta.documents.values()) + sum(meta.skipped.values()) == 360
    assert shard_bytes(tmp_path / "out") == local_bytes(
        folders, "fineweb", make_request, tmp_path, config="sample-10BT"
    )
    assert sum(server.failed.values()) >= 8


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_survived_by_streams_too(folders, serve, make_request, tmp_path, fault):
    server = serve(lambda path, count: fault if count == 1 and path.endswith(("jsonl", "gz")) else None)
    convert(make_request(dataset=("some/plain",)))
    assert server.failed[fault] == 2
    assert shard_bytes(tmp_path / "out") == local_bytes(folders, "plain", make_request, tmp_path)


def test_retry_after_is_waited_for(serve, make_request):
    import time

    server = serve(lambda path, count: "429" if count == 1 and path.endswith("a.jsonl") else None)
    times = []
    original = server.faults
    server.faults = lambda path, count: (
        (times.append(time.monotonic()) if path.endswith("a.jsonl") else None) or original(path, count)
    )
    convert(make_request(dataset=("some/plain",)))
    assert times[1] - times[0] >= 1.0  # the pause itself would be 10 ms


def test_hub_that_never_recovers_is_named_and_what_was_done_is_kept(serve, make_request, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0.1)
    server = serve(lambda path, count: "503" if path.endswith("002_00000.parquet") and count > 1 else None)
    with pytest.raises(
        InputError, match=r"002_00000\.parquet cannot be fetched: \d tries in .*, the last ended in HTTP 503; run the"
    ):
        convert(make_request(dataset=("HuggingFaceFW/fineweb",), config="sample-10BT"))
    server.faults = lambda path, count: None
    assert convert(make_request(dataset=("HuggingFaceFW/fineweb",), config="sample-10BT")) is not None
    assert (tmp_path / "out" / "meta.json").exists()


def test_unknown_dataset_config_and_revision_are_named(serve, make_request):
    serve()
    with pytest.raises(InputError, match=r"--dataset nobody/nothing: .*HTTP 404"):
        convert(make_request(dataset=("nobody/nothing",)))
    with pytest.raises(
        InputError, match=r"--config x: no such config in HuggingFaceFW/fineweb; there are default, sample"
    ):
        convert(make_request(dataset=("HuggingFaceFW/fineweb",), config="x"))
    with pytest.raises(InputError, match=r"--revision v9: .*HTTP 404"):
        convert(make_request(dataset=("HuggingFaceFW/fineweb",), revision="v9"))


def test_pauses_double_up_to_a_minute_and_are_random():
    pauses, first = [hub_client.pause(attempt, None) for attempt in range(12)], hub_client.FIRST_PAUSE_S
    assert all(first * 2**i / 2 <= p <= first * 2**i for i, p in enumerate(pauses[:5]))
    assert max(pauses) <= hub_client.LONGEST_PAUSE_S
    assert len({hub_client.pause(3, None) for _ in range(5)}) == 5
    asked = {hub_client.pause(0, 8.0) for _ in range(5)}
    assert len(asked) == 5 and 8 <= min(asked) <= max(asked) <= 10


def test_server_may_ask_for_a_pause_in_seconds_as_a_date_or_by_its_window():
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    assert hub_client.asked_pause(429, {"Retry-After": " 7 "}) == 7
    assert 80 < (hub_client.asked_pause(503, {"Retry-After": soon}) or 0) <= 90
    assert hub_client.asked_pause(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert hub_client.asked_pause(429, {"RateLimit": '"api";r=0;t=55'}) == 55
    assert hub_client.asked_pause(200, {"RateLimit": '"api";r=400;t=55'}) is None
    assert hub_client.asked_pause(429, {"Retry-After": "soon"}) is None


def test_a_hub_conversion_goes_on_with_the_commit_it_began_with(folders, serve, make_request, monkeypatch, capsys):
    """B9: stopped half way, it asks for the recorded commit, not for what main is by now; so does a finished one."""
    serve()
    file = folders / "plain" / "b.jsonl.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:60])
    with pytest.raises(InputError, match=r"b\.jsonl\.gz"):
        convert(make_request(dataset=("some/plain",)))
    file.write_bytes(whole)
    asked, real = [], sources.dataset_listing
    monkeypatch.setattr(sources, "dataset_listing", lambda name, at: (asked.append(at), real(name, at))[1])
    convert(make_request(dataset=("some/plain",)))
    assert f"commit {SHA[:12]}, which this conversion began with" in capsys.readouterr().out
    convert(make_request(dataset=("some/plain",)))
    assert "nothing to do" in capsys.readouterr().out
    assert asked == [SHA, SHA]

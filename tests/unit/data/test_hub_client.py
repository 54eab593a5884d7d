"""The one way to the hub: what it waits for, what it believes, whom it tells its token."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from moe.data import hub, hub_client
from moe.data.text.files import SourceFile
from moe.data.text.planning import Planning, plan_units
from moe.data.text.sources import hub_source
from moe.data.text.streams import open_source
from moe.data.text.tables import open_parquet
from moe.data.write.convert import convert
from moe.errors import InputError
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet
from tests.unit.data.hub_server import SHA, Hub

BASE = f"datasets/some/set/resolve/{SHA}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.fixture
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Start a hub with the dataset some/set, `folder`; everything speaks to the last one started."""
    started = []

    def start(*args, datasets=None, **settings) -> Hub:
        started.append(Hub({"some/set": folder} if datasets is None else datasets, *args, **settings))
        monkeypatch.setenv("HF_ENDPOINT", started[-1].url)
        monkeypatch.setattr(hub_client, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(hub_client, "_last_told", [])
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        return started[-1]

    yield start
    for server in started:
        server.close()


def source(**changes):
    return hub_source("some/set", **{"config": None, "split": "train", "revision": None, **changes})


def stream(size: int, name: str = "a.txt", **settings) -> hub.HubFile:
    return hub.HubFile(f"{BASE}/{name}", size, **{"block_bytes": 1000, **settings})


def test_a_hub_that_asks_for_a_second_again_and_again_is_waited_for(serve, folder, capfd, monkeypatch):
    """B11: time is counted, not tries."""
    (folder / "a.txt").write_bytes(bytes(10))
    server = serve(lambda path, count: "429" if path.endswith("a.txt") and count <= 30 else None)
    slept: list[float] = []
    monkeypatch.setattr(hub_client.time, "sleep", slept.append)
    assert stream(10).read(10) == bytes(10)
    assert server.failed["429"] == 30 and all(1 <= seconds <= 1.25 for seconds in slept) and len(set(slept)) > 20
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("waiting for the hub, 0m01s: HTTP 429 (http")


def test_what_is_asked_for_within_the_patience_is_waited_for_and_what_is_not_ends_at_once(serve, folder, monkeypatch):
    """B11: a budget of minutes, told."""
    (folder / "a.txt").write_bytes(bytes(10))
    serve(lambda path, count: "429" if path.endswith("a.txt") else None)
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0.5)
    begun = time.monotonic()
    with pytest.raises(
        InputError, match=r"1 tries in 0m00s, .* HTTP 429 and it asks for a pause of 0m01s; run the same"
    ):
        stream(10).read()
    assert time.monotonic() - begun < 0.9


def test_the_true_cause_stands_at_the_end_and_shows_no_control_characters(serve, folder, monkeypatch):
    """B11: whatever the last try ended in."""
    (folder / "a.txt").write_bytes(bytes(10))
    serve(lambda path, count: ["503", "drop"][count % 2])
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0.05)
    with pytest.raises(InputError, match=r"cannot be fetched: .*(HTTP 503|ConnectionError|RemoteProtocolError)"):
        source()
    assert hub_client.shown("a\x1b[2Jb\r\nc\u202e") == "a?[2Jb c?"


def test_a_hub_that_was_never_there_is_not_waited_for_long(serve, monkeypatch):
    """B11: patience is for a hub that is there."""
    server = serve()
    server.close()
    monkeypatch.setattr(hub_client, "UNREACHED_S", 0.05)
    with pytest.raises(InputError, match=rf"{server.url} cannot be reached \(\w+\); check the network and HF_ENDPOINT"):
        source()


@pytest.mark.parametrize("name", ["a#b.txt", "what?.txt", "100%.txt", "a b.txt", "%2e%2e.txt", "d#/é.txt"])
def test_names_and_revisions_are_quoted_in_addresses(serve, folder, name):
    """C11: `#`, `?` and `%` are characters of a name."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("some words here")
    serve(revisions=("refs/convert/parquet",))
    found = source(revision="refs/convert/parquet")
    assert [file.name for file in found.files] == [name]
    assert open_source(found.files[0]).read() == b"some words here"


def test_a_listing_without_sizes_is_filled_by_asking(serve, folder):
    """C20: some mirrors' listings have none."""
    (folder / "a.txt").write_text("some words")
    (folder / "README.md").write_text("no header")
    serve(listing=())
    assert [(file.size, file.version) for file in source().files] == [(10, SHA)]


def test_a_file_whose_size_nobody_tells_is_refused_by_name(serve, folder, monkeypatch):
    """C20: never guessed."""
    (folder / "a.txt").write_text("some words")
    serve(listing=())
    monkeypatch.setattr(Hub, "send", staticmethod(send_without_length))
    with pytest.raises(InputError, match=r"neither the listing nor the server tells the size of a\.txt; fetch"):
        source()


def send_without_length(handler, status, body, headers=None, cut=None):
    handler.send_response(status)
    handler.end_headers()
    handler.close_connection = True
    if handler.command != "HEAD":
        handler.wfile.write(body)


def test_an_answer_that_is_no_listing_is_told_with_its_beginning(serve, monkeypatch):
    """C20: a portal's page, a proxy's."""
    serve()
    monkeypatch.setattr(Hub, "send", staticmethod(send_page))
    with pytest.raises(InputError, match=r"no listing of files .*'<html>\?\[0mLog in': check HF_ENDPOINT"):
        source()


def send_page(handler, status, body, headers=None, cut=None):
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    handler.wfile.write(b"<html>\x1b[0mLog in")


def test_a_small_file_that_comes_whole_is_used(serve, folder):
    """C21: a server that ignores ranges sends all of it: that is no half body."""
    content = bytes(range(256)) * 20
    (folder / "a.txt").write_bytes(content)
    server = serve(lambda path, count: "no_range")
    file = stream(len(content))
    file.seek(3000)
    assert file.readall() == content[3000:]
    file.seek(0)
    assert file.readall() == content and server.requests[f"/{BASE}/a.txt"] == 1


def test_a_large_file_that_comes_whole_is_refused_with_the_truth_and_not_fetched(serve, folder, monkeypatch):
    """C21: the old message said that it was not all of it."""
    (folder / "a.txt").write_bytes(bytes(5000))
    serve(lambda path, count: "no_range")
    monkeypatch.setattr(hub, "WHOLE_BYTES", 4000)
    with pytest.raises(InputError, match=r"the server ignores ranges and answers with a whole file of 5000 bytes"):
        stream(5000).read()


def test_a_file_of_another_size_than_listed_is_named_at_once(serve, folder):
    """C24: a range is held against the whole size."""
    (folder / "a.txt").write_bytes(bytes(5000))
    serve()
    with pytest.raises(InputError, match=r"a\.txt: the listing says 4000 bytes, the server 5000"):
        stream(4000).read()


def test_a_range_of_another_place_does_not_count(serve, folder, monkeypatch):
    """C24: bytes of the right number from the wrong place, as the answer's own header says."""
    content = bytes(range(250)) * 8
    (folder / "a.txt").write_bytes(content)
    wrong = {"Content-Range": "bytes 7-1006/2000"}
    server = serve(headers=lambda path, count: wrong if count == 1 else {})

    def elsewhere(handler, status, body, headers=None, cut=None, send=Hub.send):
        first = status == 206 and server.requests[f"/{BASE}/a.txt"] == 1
        send(handler, status, content[7:1007] if first else body, headers, cut)

    monkeypatch.setattr(Hub, "send", staticmethod(elsewhere))
    assert stream(2000).readall() == content


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag"])
def test_a_file_that_changes_while_it_is_read_is_named(serve, folder, header):
    """C24: its ETag is that of its first bytes."""
    (folder / "a.txt").write_bytes(bytes(5000))
    serve(headers=lambda path, count: {header: '"one"' if count < 3 else '"two"'})
    with pytest.raises(InputError, match=r"a\.txt: the file changed while it was read \(ETag one, then two\)"):
        stream(5000).readall()


def test_the_files_own_etag_counts_where_two_servers_hand_it_out(serve, folder):
    """C24: a CDN's own tags differ, the hub's do not."""
    (folder / "a.txt").write_bytes(bytes(5000))
    serve(headers=lambda path, count: {"ETag": f'"{count}"', "X-Linked-Etag": '"same"'})
    assert stream(5000).readall() == bytes(5000)


def test_a_file_read_from_front_to_end_is_held_against_the_hubs_sha256(serve, folder):
    """C24: a byte that a proxy changed."""
    (folder / "a.txt").write_bytes(bytes(4500))
    serve(listing=("lfs",))
    (file,) = source().files
    assert file.size == 4500
    with open_source(file, block_bytes=1000) as reader:
        assert reader.read() == bytes(4500)
    assert hub.proven(file.path)
    (folder / "a.txt").write_bytes(bytes(4499) + b"\1")
    with open_source(file, block_bytes=1000) as reader, pytest.raises(InputError, match=r"a\.txt: its bytes are not"):
        reader.read()


def test_a_conversion_of_a_changed_file_stops(serve, folder, make_request):
    """C24: conversion.json says what each file was held against."""
    (folder / "a.txt").write_text("\n\n".join(make_texts(60)))
    serve(listing=("size", "lfs"), headers=lambda path, count: {})
    text = (folder / "a.txt").read_bytes()
    assert source().files[0].size == len(text)
    convert(make_request(dataset=("some/set",)))
    report = json.loads((folder.parent / "out" / "conversion.json").read_text())
    assert report["proofs"] == {"a.txt": "sha256"}

    def lie(handler, status, body, headers=None, cut=None, send=Hub.send):
        send(handler, status, body.replace(b"quick", b"quack"), headers, cut)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hub, "send", staticmethod(lie))
        with pytest.raises(InputError, match="its bytes are not those of the listing"):
            convert(make_request(dataset=("some/set",), out=folder.parent / "other"))


def test_a_parquet_page_that_changed_is_told_where_it_has_a_checksum(serve, folder):
    """C24: pages carry their own checksums, when they were written so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "a.parquet"
    table = pa.table({"text": make_texts(200)})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"wizards")] ^= 1
    path.write_bytes(content)
    serve()
    (file,) = source().files
    with pytest.raises(InputError, match=r"CRC|checksum"), open_parquet(file) as parquet:
        parquet.read()


def test_the_token_goes_to_the_endpoint_alone(serve, folder, tmp_path, monkeypatch):
    """Names from outside: a redirect to another host, a CDN or not, gets no token; one on the same host does."""
    (folder / "a.txt").write_text("some words")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    other = serve(datasets={"some/set": folder})
    moved: dict[str, str] = {}
    here = serve(headers=lambda path, count: {"Location": moved["to"]} if path == "/moved" else {})
    plain = Hub.answer

    def answer(self, handler):
        if self is here and "/resolve/" in handler.path and "?again" not in handler.path:
            self.tokens.append((handler.path, handler.headers.get("Authorization")))
            return self.send(handler, 302, b"", {"Location": moved["to"]})
        return plain(self, handler)

    monkeypatch.setattr(Hub, "answer", answer)
    moved["to"] = f"{other.url}/{BASE}/a.txt"
    assert stream(10).read() == b"some words"
    assert [token for _, token in here.tokens] == ["Bearer hf_secret"]
    assert [token for _, token in other.tokens] == [None]
    moved["to"] = f"/{BASE}/a.txt?again"
    assert stream(10).read() == b"some words"
    assert [token for _, token in here.tokens[-2:]] == ["Bearer hf_secret"] * 2


def test_hosts_that_may_have_the_token(monkeypatch):
    """Names from outside: the same host under another scheme or port is another one, but for https of a plain one."""
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    allowed = ["https://hub.example/a", "https://hub.example:443/a", "https://HUB.example/"]
    for url in allowed:
        assert hub_client.may_have_token(url), url
    for url in (
        "http://hub.example/",
        "https://hub.example:8443/",
        "https://hub.example.evil/",
        "https://cdn.example/",
    ):
        assert not hub_client.may_have_token(url), url
    assert not hub_client.may_have_token("https://hub.example@evil.example/")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert hub_client.may_have_token("https://hub.example/")


def parquet_files(folder: Path, count: int, rows: int = 10) -> None:
    for number in range(count):
        write_parquet(folder / f"{number:03}.parquet", make_texts(rows, seed=number))


def test_many_files_are_planned_at_once_in_their_order(serve, folder, monkeypatch, capfd):
    """C12: 300 files one request after another took 44 s."""
    parquet_files(folder, 60)
    serve(lambda path, count: time.sleep(0.1) if path.endswith(".parquet") else None)
    monkeypatch.setattr("moe.data.text.planning.TELL_EVERY_S", 0.1)
    files = source().files
    begun = time.monotonic()
    units, bad = plan_units(files, "text")
    assert time.monotonic() - begun < 60 * 0.1 / 3
    assert not bad and [unit.file.name for unit in units] == [f"{number:03}.parquet" for number in range(60)]
    assert [unit.file_index for unit in units] == list(range(60))
    assert "looking at the dataset: " in capfd.readouterr().out


def test_of_a_hubs_files_a_limit_needs_few(serve, folder, make_request, tmp_path):
    """C12: also with --max-documents; the bytes are those of a plan of all files."""
    parquet_files(folder, 80)
    server = serve()
    convert(make_request(dataset=("some/set",), max_documents=25))
    asked = {path for path in server.requests if path.endswith(".parquet")}
    assert len(asked) < 50
    convert(make_request(dataset=(str(folder),), max_documents=25, out=tmp_path / "local"))
    proof = "size, ETag, page checksums where the file has them"
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert set(report["proofs"].values()) == {proof}
    names = ("train/index.json", "train/shard.00000.mds")
    mine, local = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "local")
    assert all(mine[name] == local[name] for name in names)


def test_a_limit_that_needs_more_than_was_looked_at_looks_further(serve, folder, make_request, tmp_path):
    """C12: where nearly all rows are skipped, their number says little."""
    for number in range(120):
        write_parquet(folder / f"{number:03}.parquet", ["", "", "", "", "", "", "", "", "", f"words of file {number}"])
    server = serve()
    meta = convert(make_request(dataset=("some/set",), max_documents=50, seq_len=8))
    assert sum(meta.documents.values()) == 50
    assert len({path for path in server.requests if path.endswith(".parquet")}) < 120


def test_a_plan_goes_on_where_it_stood(folder):
    """C12: further files of a plan get the same units as a plan of all."""
    parquet_files(folder, 100, rows=3)
    files = [SourceFile(path.name, str(path), "parquet", path.stat().st_size, "1") for path in sorted(folder.iterdir())]
    every, _ = plan_units(files, "text")
    planning = Planning([*files], "text", max_documents=3)
    assert planning.more() and planning.units == every, "of files on this machine all are looked at"
    assert not planning.more()


def test_a_bug_in_planning_is_raised_and_keeps_no_thread_busy(monkeypatch):
    """C12: what a thread raises is raised where the plan is made."""
    from moe.data.text.planning import in_order

    def call(number: int) -> int:
        if number == 3:
            raise RuntimeError("three")
        return number

    found = in_order(call, list(range(500)), threads=4, ahead=8)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="three"):
        next(found)


class Refusal(Exception):
    """As huggingface_hub's own: the answer stands in it, or in what caused it."""

    def __init__(self, status: int) -> None:
        super().__init__("Server Error")
        self.response = SimpleNamespace(status_code=status, headers={"Retry-After": "3"})


def test_what_libraries_fetch_themselves_is_tried_again_with_the_same_patience(monkeypatch, tmp_path):
    """B10: an import from the hub was a third way there."""
    import requests

    from moe.export import from_hf

    slept: list[float] = []
    monkeypatch.setattr(hub_client.time, "sleep", slept.append)
    faults: list[Exception] = [Refusal(429), ConnectionError("reset by peer"), requests.ReadTimeout("stalled")]

    def download(source, allow_patterns):
        if faults:
            try:
                raise faults.pop(0)
            except Exception as error:
                raise OSError("wrapped") from error
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert from_hf._folder("some/model") == tmp_path
    assert len(slept) == 3 and 3 <= slept[0] <= 3.75
    for fault in (Refusal(404), requests.ConnectionError("Connection refused"), OSError("no space")):
        faults[:] = [fault]
        with pytest.raises(InputError, match=r"--from-hf \(some/model\): is no folder, and the hub does not give it"):
            from_hf._folder("some/model")
        assert not faults, "asked once"

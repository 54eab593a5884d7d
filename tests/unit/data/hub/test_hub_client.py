"""The one way to the hub: what it waits for, what it believes, whom it tells its token."""

import time
from types import SimpleNamespace

import pytest

from moe.common.errors import InputError
from moe.data import hub, hub_client
from moe.data.text.streams import open_source
from tests.unit.data.hub.some_set import BASE, source, stream
from tests.unit.data.hub_server import SHA, Hub


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
    with pytest.raises(InputError, match=r"not a listing of files .*'<html>\?\[0mLog in': check HF_ENDPOINT"):
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
    with pytest.raises(InputError, match=r"the server ignores ranges and answers with all 5000 bytes of the file"):
        stream(5000).read()


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


class Refusal(Exception):
    """As huggingface_hub's own: the answer stands in it, or in what caused it."""

    def __init__(self, status: int) -> None:
        super().__init__("Server Error")
        self.response = SimpleNamespace(status_code=status, headers={"Retry-After": "3"})


def test_what_libraries_fetch_themselves_is_tried_again_with_the_same_patience(monkeypatch, tmp_path):
    """B10: an import from the hub was a third way there."""
    import requests

    from moe.use.export import from_hf

    slept: list[float] = []
    monkeypatch.setattr(hub_client.time, "sleep", slept.append)
    errors: list[Exception] = [Refusal(429), ConnectionError("reset by peer"), requests.ReadTimeout("stalled")]

    def download(source, allow_patterns):
        if errors:
            try:
                raise errors.pop(0)
            except Exception as error:
                raise OSError("wrapped") from error
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert from_hf._folder("some/model") == tmp_path
    assert len(slept) == 3 and 3 <= slept[0] <= 3.75
    for reason in (Refusal(404), requests.ConnectionError("Connection refused"), OSError("no space")):
        errors[:] = [reason]
        with pytest.raises(
            InputError, match=r"--from-hf \(some/model\): is not a folder, and the hub does not give it"
        ):
            from_hf._folder("some/model")
        assert not errors, "asked once"

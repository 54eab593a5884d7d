"""A tokenizer of the hub: fetched with the care that data gets, used from the cache where the hub is away."""

import hashlib
import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from moe.common.errors import InputError
from moe.data import hub_client, load_tokenizer, tokenizer_fingerprint
from moe.data.text import tokenizer_hub
from tests.unit.data.hub_server import Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
JSON = "/some/bpe/resolve/main/tokenizer.json"


@pytest.fixture
def serve(tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Start a hub that has the tokenizer some/bpe, with an empty cache beside it."""
    started = []
    shutil.copytree(tokenizer_folder, tmp_path / "bpe")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(hub_client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)

    def start(errors=lambda path, count: None, headers=lambda path, count: {"X-Repo-Commit": COMMIT}) -> Hub:
        started.append(Hub({}, errors, models={"some/bpe": tmp_path / "bpe"}, headers=headers))
        monkeypatch.setenv("HF_ENDPOINT", started[-1].url)
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.mark.parametrize("error", ["429", "503", "drop", "cut", "stall"])
def test_one_error_of_each_kind_at_each_file_is_survived(serve, tokenizer_folder, monkeypatch, error):
    """B10: one 429 or one dropped connection, and the tokenizer was refused."""
    calls: list[float] = []
    monkeypatch.setattr(hub_client.time, "sleep", calls.append)
    only = (JSON,) if error == "stall" else ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    server = serve(lambda path, count: error if path.endswith(only) and count <= 2 else None)
    loaded = load_tokenizer("some/bpe")
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(load_tokenizer(str(tokenizer_folder)))
    assert server.failed[error] >= 2 and calls


def test_the_true_cause_is_told_where_it_does_not_pass(serve, monkeypatch):
    """B10: the cause was not told."""
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0.1)
    serve(lambda path, count: "429")
    with pytest.raises(
        InputError, match=r"'some/bpe' cannot be loaded: .*tokenizer_config\.json .*HTTP 429 and it asks"
    ):
        load_tokenizer("some/bpe")


def test_a_file_that_was_not_fetched_is_never_taken_for_one_that_is_not_there(serve, monkeypatch):
    """B10: transformers continues without the file, with another tokenizer."""
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0.1)
    serve(lambda path, count: "503" if path.endswith("special_tokens_map.json") else None)
    with pytest.raises(InputError, match=r"special_tokens_map\.json .*HTTP 503"):
        load_tokenizer("some/bpe")


def test_what_is_cached_is_not_fetched_again_and_is_used_where_the_hub_is_away(serve, monkeypatch, capfd):
    """B10: offline and cached names need no hub."""
    server = serve()
    load_tokenizer("some/bpe")
    first = server.requests.copy()
    load_tokenizer("some/bpe")
    assert server.requests[JSON] == first[JSON] == 1 and sum(server.requests.values()) <= sum(first.values()) + 2
    monkeypatch.setattr(tokenizer_hub, "CACHED_PATIENCE_S", 0.05)
    serve(lambda path, count: "503")
    assert load_tokenizer("some/bpe").eos_token_id is not None
    assert "tokenizer some/bpe: the cached one is used (" in capfd.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_client, "ask_once", None)
    assert load_tokenizer("some/bpe").eos_token_id is not None


def test_files_of_two_commits_are_not_mixed(serve, tmp_path):
    """B10: a push while the files are fetched."""
    other = COMMIT[::-1]
    pushed = []

    def headers(path, count):
        if path == JSON:
            pushed.append(path)
        return {"X-Repo-Commit": other if pushed else COMMIT}

    serve(headers=headers)
    assert load_tokenizer("some/bpe").eos_token_id is not None
    assert [path.name for path in (tmp_path / "cache" / "models--some--bpe" / "snapshots").iterdir()] == [other]


def test_a_file_is_held_against_the_sha256_that_comes_with_it(serve, tmp_path, monkeypatch):
    """B10: as data is."""
    digest = hashlib.sha256((tmp_path / "bpe" / "tokenizer.json").read_bytes()).hexdigest()

    def headers(path, count):
        right = {"X-Linked-Etag": f'"{digest}"'} if count > 1 else {"X-Linked-Etag": '"' + "0" * 64 + '"'}
        return {"X-Repo-Commit": COMMIT, **(right if path == JSON else {})}

    server = serve(headers=headers)
    assert load_tokenizer("some/bpe").eos_token_id is not None
    assert server.requests[JSON] == 2


def test_a_mirror_that_tells_no_commit_is_enough(serve):
    """B10: the files are what counts."""
    serve(headers=lambda path, count: {})
    assert load_tokenizer("some/bpe").eos_token_id is not None


@pytest.mark.parametrize("name", ["./tok", "../tok", "tok/", "x/tok/", "/x/tok", "a/b/c", "~/tok"])
def test_a_folder_that_is_not_there_is_asked_of_nobody(name, monkeypatch, tmp_path):
    """D12: a typing error in a path went to the hub first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moe.data.text.tokenizer.hub_error", None)
    with pytest.raises(
        InputError, match=r"cannot be loaded: that folder is not there; give one with a tokenizer\.json"
    ):
        load_tokenizer(name)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="that folder is a file"):
        load_tokenizer("./file")


def test_a_file_of_the_cache_may_be_written_by_two_processes_of_one_number(tmp_path, monkeypatch):
    """Containers that share a cache: the slower one was told that the file cannot be written."""
    replace = os.replace

    def behind_another(aside, path):
        monkeypatch.setattr(os, "replace", replace)
        tokenizer_hub._write(path, b"the same")
        replace(aside, path)

    monkeypatch.setattr(os, "replace", behind_another)
    tokenizer_hub._write(tmp_path / "tokenizer.json", b"the same")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]

"""Text of the hub that gets new commits while a run trains on it."""

import dataclasses
import json

import pytest

from moe.common.errors import InputError
from moe.data.read.text_known import COMMIT, read_commit, write_commit
from moe.data.text import sources
from moe.train.checkpointing.checkpoints import Checkpoint
from moe.train.checkpointing.compatibility import check_continues
from tests.unit.data.hub_server import SHA, Hub

NEW = "f" * 40


@pytest.fixture
def moving(text_folder, monkeypatch):
    """A dataset `me/text`; `moving.append(True)` adds a file to its main. Also the revisions that were asked for."""
    hub = Hub({"me/text": text_folder})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    (text_folder / "z.jsonl").write_text(json.dumps({"text": "what came later"}) + "\n")
    moved, asked, real = [], [], sources.dataset_listing

    def listing(name, revision):
        asked.append(revision)
        found = real(name, revision)
        if moved and revision is None:  # the server has one commit: its files are fetched by that one
            return found
        return dataclasses.replace(found, files=[file for file in found.files if file.path != "z.jsonl"])

    monkeypatch.setattr(sources, "dataset_listing", listing)
    yield moved, asked
    hub.close()


def test_a_run_goes_on_with_the_commit_it_began_with(plan, moving, tmp_path, capsys):
    """B9: the newest main was taken at each start, and a resume refused for the file that had come."""
    moved, asked = moving
    first = plan("me/text")
    assert first.commit == SHA and f"commit={SHA}" in first.fingerprint
    write_commit(tmp_path, first.asked, first.commit)
    moved.append(True)
    again = plan("me/text", run_folder=tmp_path)
    assert asked == [None, SHA] and again.fingerprint == first.fingerprint
    assert f"me/text, commit {SHA[:12]}, as when this run began; revision names another" in capsys.readouterr().out
    other = plan("me/text", run_folder=tmp_path, revision="main")  # asked for otherwise
    assert asked[2:] == ["main"] and other.commit == SHA
    newest = plan("me/text", run_folder=tmp_path / "elsewhere")
    assert newest.fingerprint != first.fingerprint


def test_where_the_commit_is_not_at_hand_the_refusal_names_it(plan, moving, tmp_path):
    """B9: on another machine; nobody could say which revision would be the same text."""
    first = plan("me/text")
    moving[0].append(True)
    now = dataclasses.replace(plan("me/text"))
    newest = now.fingerprint.replace(SHA, NEW)
    checkpoint = Checkpoint(tmp_path, {"config": {}, "data": first.fingerprint})
    with pytest.raises(InputError, match=rf"z\.jsonl=[^$]*train_data\.text\.revision={SHA}"):
        check_continues(checkpoint, {}, newest, print)
    with pytest.raises(InputError) as caught:
        check_continues(checkpoint, {}, now.fingerprint, print)
    assert "text.revision=" not in str(caught.value), "the same commit: that is not it"
    check_continues(checkpoint, {}, first.fingerprint.replace(SHA, NEW), print)  # a commit that changed no text


def test_text_of_this_machine_has_no_commit_and_a_damaged_record_is_none(plan, text_folder, tmp_path):
    """B9: a run whose text is here by now, under the same name, is no run of the hub."""
    first = plan()
    assert first.commit is None and "commit=" not in first.fingerprint
    write_commit(tmp_path, first.asked, SHA)
    assert read_commit(tmp_path, first.asked) == SHA
    assert plan(run_folder=tmp_path).fingerprint == first.fingerprint
    for damaged in ("", "{", '{"asked": {}, "commit": 5}', json.dumps({"asked": first.asked, "commit": "../main"})):
        (tmp_path / COMMIT).write_text(damaged)
        assert read_commit(tmp_path, first.asked) is None
    write_commit(tmp_path, first.asked, None)
    assert not (tmp_path / COMMIT).exists()


def test_a_start_keeps_the_commit_and_the_next_one_takes_it(tiny, tmp_path, monkeypatch):
    """B9: through the run's folder."""
    from moe.cli.train import main
    from tests.tiny import tiny_config, write_config, write_text

    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text/a.jsonl")
    hub = Hub({"me/words": tmp_path / "text"})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.chdir(tmp_path)
    asked, real = [], sources.dataset_listing
    monkeypatch.setattr(sources, "dataset_listing", lambda name, at: (asked.append(at), real(name, at))[1])
    data = {"text": {"dataset": "me/words", "val_fraction": 0.1, "lanes": 4}}
    changes = {"scheduler": {"name": "constant_with_warmup", "t_warmup": "1ba"}, "save_folder": str(tmp_path / "run")}
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny, train_data=data, eval_data=None, **changes))
    try:
        assert main([str(path), "max_duration=2ba"]) == 0
        assert main([str(path), "max_duration=3ba"]) == 0
    finally:
        hub.close()
    assert asked == [None, SHA]

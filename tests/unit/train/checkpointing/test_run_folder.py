import copy
import os
from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.train.checkpointing.compatibility import check_continues, compare_configs
from moe.train.checkpointing.run_folder import open_run_folder
from tests.unit.train.checkpointing.test_checkpoints import flip_a_byte, steps, write

SAID: list[str] = []


def open_folder(path: Path, **changes):
    """Opened, and the start recorded."""
    SAID.clear()
    settings = {"run_name": "a", "autoresume": True, "resume_from": None, "report": SAID.append, **changes}
    folder = open_run_folder(str(path), **settings)
    folder.begin(SAID.append)
    return folder


def test_a_fresh_folder_gets_an_id_that_stays(tmp_path: Path) -> None:
    first = open_folder(tmp_path / "a")
    first.lock.close()
    again = open_folder(tmp_path / "a")
    assert first.checkpoint is None and again.record["id"] == first.record["id"]


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("moe.train.checkpointing.folder_lock.LOCK_PATIENCE", 0.3)
    held = open_folder(tmp_path)
    with pytest.raises(InputError, match="in use by another training process"):
        open_folder(tmp_path)
    assert [
        f"{tmp_path} is in use by pid {os.getpid()} on {os.uname().nodename}; waiting up to 0.3 s for its end ..."
    ] == SAID
    held.lock.close()
    open_folder(tmp_path)
    assert SAID == []


def test_another_runs_folder_is_refused_with_both_names(tmp_path: Path) -> None:
    open_folder(tmp_path).lock.close()
    with pytest.raises(InputError, match=r"holds another run, 'a'; this one is run_name \(b\)"):
        open_folder(tmp_path, run_name="b")


def test_without_autoresume_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(InputError, match="already contains a run, and autoresume is false"):
        open_folder(tmp_path, autoresume=False)


def test_a_folder_whose_only_checkpoint_is_broken_is_never_started_over(tmp_path: Path) -> None:
    flip_a_byte(write(tmp_path, 1) / "state.pt")
    with pytest.raises(InputError, match="none verifies"):
        open_folder(tmp_path)


def test_going_back_sets_later_checkpoints_aside_once(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    folder = open_folder(tmp_path, resume_from="step:1")
    assert folder.checkpoint is not None and folder.checkpoint.step == 1 and steps(tmp_path) == [1]
    assert "step 2 stays as left-behind" in SAID[0] and "step 3" in SAID[1]
    assert SAID[2].startswith("(load_path takes such a left-behind-* folder into a new run; delete it when")
    folder.lock.close()
    write(tmp_path, 4)  # the run went on, and was stopped
    again = open_folder(tmp_path, resume_from="step:1")
    assert again.checkpoint is not None and again.checkpoint.step == 4 and "done before" in SAID[0]


def test_going_back_to_what_is_not_there_lists_what_is(tmp_path: Path) -> None:
    write(tmp_path, 1), write(tmp_path, 2)
    with pytest.raises(InputError, match=r"step:9\): no such checkpoint .* step:1, step:2"):
        open_folder(tmp_path, resume_from="step:9")


CONFIG = {
    "model": {"d_model": 8, "dropout": 0.0},
    "optimizer": {"lr": 1.0, "name": "muon"},
    "seed": 1,
    "max_seq_len": 4,
}


def changed(section: str, key: str, value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    config[section][key] = value  # type: ignore[index]
    return config


def test_what_may_change_is_applied_and_what_must_not_is_refused() -> None:
    assert compare_configs(CONFIG, CONFIG) == ([], [])
    assert compare_configs(CONFIG, changed("optimizer", "lr", 2.0)) == (["optimizer.lr: was 1.0, is 2.0"], [])
    assert compare_configs(CONFIG, changed("model", "dropout", 0.1))[1] == []
    assert compare_configs(CONFIG, changed("model", "d_model", 16)) == ([], ["model.d_model: was 8, is 16"])
    assert compare_configs(CONFIG, changed("optimizer", "name", "adamw"))[1] == ["optimizer.name: was muon, is adamw"]
    assert compare_configs(CONFIG, {**CONFIG, "max_seq_len": 8})[1] == ["max_seq_len: was 4, is 8"]
    assert compare_configs({"betas": [0.9, 0.95]}, {"betas": (0.9, 0.95)}) == ([], [])


def test_what_an_earlier_version_called_or_had_otherwise_is_no_change_and_no_difference() -> None:
    from types import SimpleNamespace

    from moe.runs.compare import settings
    from moe.train.checkpointing.changes import new_changes

    former = changed("model", "qk_norm", True)  # and without what it did not have
    now = changed("model", "qk_norm", "head")
    now["model"] |= {"scoring_func": "softmax", "first_k_dense_replace": 0, "dense_hidden": None}
    assert compare_configs(former, now) == ([], [])
    assert new_changes({"config": former, "step": 5}, now, {}, {}) == []
    assert settings(SimpleNamespace(config=former)) == settings(SimpleNamespace(config=now))
    now["model"]["qk_norm"] = "full"
    assert compare_configs(former, now)[1] == ["model.qk_norm: was head, is full"]
    (change,) = new_changes({"config": former, "step": 5}, now, {}, {})
    assert (change["key"], change["was"], change["now"]) == ("model.qk_norm", "head", "full")


def test_a_run_keeps_its_stripes_and_an_earlier_one_had_one() -> None:
    former = {"train_data": {"local": "x"}}
    now = {"train_data": {"local": "x", "num_canonical_nodes": 1}}
    assert compare_configs(former, now) == ([], [])
    now["train_data"]["num_canonical_nodes"] = 2
    assert compare_configs(former, now)[1] == ["train_data.num_canonical_nodes: was 1, is 2"]


def test_a_continuation_with_other_data_or_shape_is_refused_with_both_values(tmp_path: Path) -> None:
    from moe.train.checkpointing.checkpoints import Checkpoint

    checkpoint = Checkpoint(tmp_path, {"config": CONFIG, "data": "aaa"})
    check_continues(checkpoint, changed("optimizer", "lr", 2.0), "aaa", SAID.append)
    assert "changed since the checkpoint: optimizer.lr: was 1.0, is 2.0" in SAID
    with pytest.raises(InputError, match=r"model\.d_model: was 8, is 16\n.*was data aaa, is bbb") as error:
        check_continues(checkpoint, changed("model", "d_model", 16), "bbb", SAID.append)
    assert "load_path" not in str(error.value), "its weights would not fit"
    assert "set them back, or" in str(error.value), "no yaml is kept there"
    (tmp_path / "config.yaml").touch()
    kept = Checkpoint(tmp_path / "step-00000005", checkpoint.manifest)
    with pytest.raises(InputError, match=f"set them back, as in {tmp_path}/config.yaml, or start a new run"):
        check_continues(kept, changed("model", "d_model", 16), "aaa", SAID.append)
    with pytest.raises(InputError, match="new run from these weights: run_name=NEW load_path="):
        check_continues(checkpoint, {**checkpoint.manifest["config"]}, "bbb", print)


def test_an_import_is_refused_as_a_run_to_go_on_with(tmp_path: Path) -> None:
    from moe.train.checkpointing.checkpoints import Checkpoint

    imported = Checkpoint(tmp_path, {"config": {"model": CONFIG["model"]}, "data": "", "imported_from": "hf"})
    with pytest.raises(InputError, match=r"is an import, which holds weights alone; .*load_weights_only=true"):
        check_continues(imported, CONFIG, "aaa", SAID.append)


def test_of_a_mixture_only_the_streams_that_differ_are_told_each_on_its_line(tmp_path: Path) -> None:
    from moe.train.checkpointing.checkpoints import Checkpoint

    checkpoint = Checkpoint(tmp_path, {"config": CONFIG, "data": "code aa train proportion 0.2; web bb train"})
    with pytest.raises(InputError) as error:
        check_continues(checkpoint, CONFIG, "code aa train proportion 0.3; web bb train", SAID.append)
    assert str(error.value).splitlines()[1:4] == [
        "  train_data: the streams differ (name, data, split, weight)",
        "    was code aa train proportion 0.2",
        "    is  code aa train proportion 0.3",
    ]


def test_a_run_whose_checkpoints_are_gone_is_not_started_over(tmp_path: Path) -> None:
    write(tmp_path, 1).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="held checkpoints of this run and they are gone"):
        open_folder(tmp_path)


@pytest.mark.parametrize("content", ["[1]", '"abc"', "{", ""])
def test_a_damaged_run_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: is damaged"):
        open_folder(tmp_path)


def test_a_changed_batch_size_is_refused_because_steps_would_mean_other_tokens() -> None:
    refused = compare_configs({"global_train_batch_size": 8}, {"global_train_batch_size": 16})[1]
    assert refused == ["global_train_batch_size: was 8, is 16"]


@pytest.mark.parametrize("changes", [{}, {"resume_from": "step:9"}])
def test_a_step_folder_of_another_name_is_refused_by_it(tmp_path: Path, changes: dict) -> None:
    """The manifest's step was taken and the name it had on disk never looked at."""
    open_folder(tmp_path).lock.close()
    write(tmp_path, 1)
    write(tmp_path, 2).rename(tmp_path / "step-00000009")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(
        InputError, match=r"step-00000009 holds step 2 by its manifest\.json; give it its name step-0000"
    ):
        open_folder(tmp_path, **changes)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_step_folders_without_run_json_are_a_run_whatever_else_is_there(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    folder = open_folder(tmp_path)
    folder.lock.close()
    assert folder.checkpoint is not None and folder.checkpoint.step == 1

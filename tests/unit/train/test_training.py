"""Runs the whole trainer in this process, on a tiny dataset: what the losses, logs and checkpoints say."""

import json
import math
import shutil
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from moe.cli.train import main
from moe.train.checkpointing.parts import part_name
from moe.train.stop import StopSignal
from tests.tiny import divide, tiny_config, write_config
from tests.unit.train.runs import assert_same_run, rows, train, weights


@pytest.fixture(scope="module")
def reference(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 40 steps."""
    patch = pytest.MonkeyPatch()
    patch.setattr(StopSignal, "install", lambda self: None)
    code, folder = train(tiny, tmp_path_factory.mktemp("reference"))
    patch.undo()
    assert code == 0
    return folder


def test_training_lowers_the_loss_and_evaluates_first_between_and_last(reference: Path) -> None:
    loss, evaluated = rows(reference, "train/loss"), rows(reference, "metrics/eval/loss")
    assert list(loss) == list(range(1, 41)) and sorted(evaluated) == [0, 20, 40]
    assert abs(evaluated[0] - math.log(300)) < 0.3  # near uniform over the vocabulary
    assert evaluated[40] < evaluated[0] - 1
    assert rows(reference, "metrics/eval/perplexity")[40] == pytest.approx(math.exp(evaluated[40]), rel=1e-5)


def test_the_learning_rate_is_the_schedules_at_the_end_of_each_step(reference: Path) -> None:
    rate = rows(reference, "optim/lr/muon")
    assert rate[1] == pytest.approx(5e-3 / 4) and rate[4] == pytest.approx(5e-3)  # warmup of 4 steps
    assert rate[22] == pytest.approx(5e-3 * (0.1 + 0.9 * 0.5)) and rate[40] == pytest.approx(5e-4)


def test_the_newest_three_checkpoints_stay_and_logs_and_config_lie_beside_them(reference: Path) -> None:
    names = {p.name for p in reference.iterdir()}
    assert names >= {"step-00000020", "step-00000030", "step-00000040", "config.yaml", "metrics.jsonl", "run.json"}
    assert "step-00000010" not in names
    assert json.loads((reference / "run.json").read_text())["state"] == "done"
    manifest = json.loads((reference / "step-00000040" / "manifest.json").read_text())
    assert (manifest["step"], manifest["tokens"]) == (40, 10240) and manifest["versions"]["torch"]


def test_the_loss_and_the_weights_do_not_depend_on_the_microbatch(tiny: Path, tmp_path: Path, reference: Path) -> None:
    off = ["model.dropout=0", "max_duration=5ba", "scheduler.t_warmup=1ba"]  # dropout masks follow the microbatches
    whole = train(tiny, tmp_path, *off, "device_train_microbatch_size=8", name="whole")[1]
    split = train(tiny, tmp_path, *off, "device_train_microbatch_size=3", name="split")[1]
    watched = ("router/entropy", "router/logit_max", "experts/max_vio", "update_rms/experts")
    for key in ("train/loss", "train/balance_loss", "optim/grad_norm", "metrics/eval/loss", *watched):
        assert rows(whole, key) == pytest.approx(rows(split, key), rel=2e-5), key
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(split)[name], rtol=1e-3, atol=2e-5)


def test_the_first_loss_is_the_mean_over_targets_of_a_plain_forward(tiny: Path, tmp_path: Path) -> None:
    from moe.config import load_config
    from moe.train.composer_model import build_model
    from moe.train.inputs import check_data
    from moe.train.loaders import build_train_spec

    settings = ["model.dropout=0", "max_duration=1ba", "scheduler.t_warmup=0ba", "device_train_microbatch_size=3"]
    folder = train(tiny, tmp_path, *settings)[1]
    config = load_config(tmp_path / "c.yaml", settings)
    inputs = check_data(config, print)
    batch = next(iter(build_train_spec(config, inputs, 1).dataloader))
    logits = build_model(config, inputs).transformer(batch["tokens"])
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert (batch["labels"] == -100).any()
    assert rows(folder, "train/loss")[1] == pytest.approx(plain.item(), abs=1e-5)


def test_row06_a_finished_run_says_so_and_exits_0(tiny: Path, tmp_path: Path, reference: Path, capsys) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in reference.glob("step-*/*")}
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    assert main([str(path), f"save_folder={reference}"]) == 0
    assert "complete: step 40 of 40" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in reference.glob("step-*/*")} == before


def test_a_duration_before_the_saved_step_is_told_as_that(tiny: Path, reference: Path, tmp_path: Path, capsys) -> None:
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    assert main([str(path), f"save_folder={reference}", "max_duration=12ba", "scheduler.t_warmup=2ba"]) == 0
    out = capsys.readouterr().out
    assert "max_duration (12ba) lies before step 40, which is saved in" in out and "nothing is left to do" in out
    assert "complete:" not in out


def test_a_duration_before_the_saved_step_evaluates_nothing(
    tiny: Path, reference: Path, tmp_path: Path, capsys
) -> None:
    """Where the saved step's evaluation was not made it was, at that step, and the run was called done at another."""
    folder = shutil.copytree(reference, tmp_path / "run")
    rows = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "metrics/eval" not in line]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    before = (folder / "config.yaml").read_bytes()
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    assert main([str(path), f"save_folder={folder}", "max_duration=12ba", "scheduler.t_warmup=2ba"]) == 0
    out = capsys.readouterr().out
    assert "max_duration (12ba) lies before step 40" in out and "done:" not in out
    assert (folder / "config.yaml").read_bytes() == before


def test_a_longer_duration_and_another_rate_go_on_and_are_told(tiny: Path, tmp_path: Path, capsys) -> None:
    folder = train(tiny, tmp_path, "max_duration=10ba", "scheduler.t_warmup=2ba")[1]
    code, _ = train(tiny, tmp_path, "max_duration=14ba", "scheduler.t_warmup=2ba", "optimizer.lr=1e-3")
    out = capsys.readouterr().out
    assert code == 0 and "resumed from step 10" in out
    assert "changed since the checkpoint: optimizer.lr: was 0.005, is 0.001" in out
    assert sorted(rows(folder, "train/loss")) == list(range(1, 15))
    assert rows(folder, "optim/lr/muon")[14] == pytest.approx(1e-4)


def test_a_new_run_can_start_from_the_weights_of_another(tiny: Path, tmp_path: Path, reference: Path, capsys) -> None:
    overrides = ["run_name=next", f"load_path={reference}", "max_duration=2ba", "scheduler.t_warmup=1ba"]
    code, folder = train(tiny, tmp_path, *overrides, name="next")
    assert code == 0 and "starting from the weights of" in capsys.readouterr().out
    assert rows(folder, "metrics/eval/loss")[0] == pytest.approx(rows(reference, "metrics/eval/loss")[40], abs=1e-6)
    assert sorted(rows(folder, "train/loss")) == [1, 2]


def test_a_checkpoint_of_several_ranks_is_evaluated_checked_and_loaded_as_any_other(
    tiny: Path, tmp_path: Path, reference: Path, capsys
) -> None:
    from moe.cli.main import main as moe

    shared, config = tmp_path / "shared", str(write_config(tmp_path / "c.yaml", tiny_config(tiny)))
    shutil.copytree(reference, shared)
    divide(shared / "step-00000040", 3)
    told = []
    for folder in (reference, shared):
        capsys.readouterr()
        assert moe(["eval", str(folder), "--data", str(tiny / "data"), "--max-batches", "1"]) == 0
        told.append(capsys.readouterr().out.replace(str(folder), "RUN"))
    assert told[0] == told[1] and "loss" in told[0]
    check = ["check", config, f"save_folder={shared}", "max_duration=50ba"]
    assert moe(check) == 0 and "resumes from step 40 of 50" in capsys.readouterr().out
    short = ["max_duration=2ba", "scheduler.t_warmup=1ba"]
    code, folder = train(tiny, tmp_path, "run_name=next", f"load_path={shared}", *short, name="next")
    assert code == 0
    assert rows(folder, "metrics/eval/loss")[0] == pytest.approx(rows(reference, "metrics/eval/loss")[40], abs=1e-6)
    goes_on = ["load_weights_only=false", "max_duration=41ba"]
    runs = [
        train(tiny, tmp_path, f"run_name={name}", f"load_path={of}", *goes_on, name=name)[1]
        for name, of in (("whole", reference), ("parts", shared))
    ]
    assert_same_run(*runs)
    with open(shared / "step-00000040" / part_name(1), "r+b") as file:
        file.seek(-4, 2)
        file.write(b"lost")
    capsys.readouterr()
    assert moe(check) == 2 and "its bytes have changed since it was written" in capsys.readouterr().out
    assert train(tiny, tmp_path, f"load_path={shared / 'step-00000040'}", "run_name=last", name="last")[0] == 2
    assert "its bytes have changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_schedule_and_optimizer_trains(tiny: Path, tmp_path: Path, optimizer: str) -> None:
    schedules = {
        "wsd": ["scheduler.t_decay=2ba"],
        "constant_with_warmup": [],
        "linear_decay_with_warmup": ["scheduler.alpha_f=0"],
    }
    for name, extra in schedules.items():
        overrides = [
            f"optimizer.name={optimizer}",
            f"scheduler.name={name}",
            "max_duration=4ba",
            "scheduler.t_warmup=1ba",
        ]
        code, folder = train(tiny, tmp_path, *overrides, *extra, "eval_data=null", name=name)
        assert code == 0 and len(rows(folder, "train/loss")) == 4


def test_tensorboard_and_wandb_get_the_rows_too(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = ["loggers.tensorboard={}", "loggers.wandb={project: test, mode: offline}", "max_duration=4ba"]
    code, folder = train(tiny, tmp_path, *overrides, "scheduler.t_warmup=1ba")
    assert code == 0
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    record = json.loads((folder / "run.json").read_text())
    assert list(folder.glob(f"wandb/offline-run-*-{record['wandb_id']}"))


def test_generation_from_the_checkpoint_continues_prompts(reference: Path, capsys) -> None:
    from moe.cli.main import main as moe

    greedy = ["generate", str(reference), "--max-new-tokens", "8", "--temperature", "0"]
    assert moe([*greedy, "--prompt", "the model", "--prompt", "every"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("the model") and "\n\nevery" in first
    moe([*greedy, "--prompt", "the model", "--prompt", "every"])
    assert capsys.readouterr().out == first
    assert moe(["generate", str(reference / "nothing"), "--prompt", "x"]) == 2
    assert "is not there; give a run folder" in capsys.readouterr().err


def test_remote_data_is_fetched_into_the_local_folder_as_it_is_needed(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    short = ["max_duration=2ba", "scheduler.t_warmup=1ba"]
    streams = [
        f"{key}_data.{place}" for key in ("train", "eval") for place in (f"local={cache}", f"remote={tiny / 'data'}")
    ]
    code, folder = train(tiny, tmp_path, *short, *streams, name="remote")
    assert code == 0 and list((cache / "train").glob("shard.*.mds")) and list((cache / "val").glob("shard.*.mds"))
    local = train(tiny, tmp_path, *short, name="local")[1]
    assert rows(folder, "train/loss") == rows(local, "train/loss")
    assert rows(folder, "metrics/eval/loss") == rows(local, "metrics/eval/loss")


def test_weights_of_another_shape_are_refused_with_both_shapes(
    tiny: Path, tmp_path: Path, reference: Path, capsys
) -> None:
    overrides = [f"load_path={reference}", "model.d_model=64", "run_name=wide"]
    code, _ = train(tiny, tmp_path, *overrides, name="wide")
    assert code == 2 and "model.d_model: was 32, is 64" in capsys.readouterr().err


def test_a_named_checkpoint_that_is_damaged_is_refused(tiny: Path, tmp_path: Path, reference: Path, capsys) -> None:
    import shutil

    shutil.copytree(reference / "step-00000040", tmp_path / "step-00000040")
    state = tmp_path / "step-00000040" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    code, _ = train(tiny, tmp_path, f"load_path={tmp_path / 'step-00000040'}", "run_name=next", name="next")
    assert code == 2 and "state.pt: has 1000 bytes, its manifest says" in capsys.readouterr().err


def test_row10_a_non_finite_step_is_skipped_and_counted_and_too_many_stop_the_run(
    tiny: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from moe.train.composer_model import MoEModel

    plain = MoEModel.loss
    calls = []

    def poisoned(self, outputs, batch, *args, **kwargs):
        calls.append(None)
        loss = plain(self, outputs, batch)
        return {"total": loss["total"] * (float("inf") if len(calls) in bad else 1.0)}

    monkeypatch.setattr(MoEModel, "loss", poisoned)
    bad = {3, 5}
    overrides = ["max_duration=6ba", "scheduler.t_warmup=1ba", "save_interval=1ba", "save_num_checkpoints_to_keep=-1"]
    code, folder = train(tiny, tmp_path, *overrides, "eval_data=null")
    assert code == 0 and list(rows(folder, "optim/skipped_steps").values()) == [0, 0, 1, 1, 2, 2]
    second, third, fourth = (
        torch.load(folder / f"step-0000000{s}/state.pt", weights_only=False)["state"]["model"] for s in (2, 3, 4)
    )
    name = "transformer.blocks.0.moe.w13"
    assert torch.equal(second[name], third[name]) and not torch.equal(third[name], fourth[name])
    assert all(torch.isfinite(value).all() for value in fourth.values())
    calls.clear()
    bad = {2, 3, 4}
    overrides += ["eval_data=null", "max_skipped_steps=3", "optimizer.name=adamw", "optimizer.adamw.lr=1e-3"]
    code, _ = train(tiny, tmp_path, *overrides, name="stopped")
    error = capsys.readouterr().err
    assert code == 1 and "not finite for 3 steps in a row" in error and "and a lower optimizer.adamw.lr" in error
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["state"] == "failed"


def test_a_failed_write_is_told_and_the_run_goes_on_and_saves_again(
    tiny: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    import moe.train.callbacks.saver as saver

    plain = saver.write_checkpoint

    def full(folder, step, state, manifest, more):
        if step in full_at:
            raise OSError(28, "No space left on device")
        return plain(folder, step, state, manifest, more)

    monkeypatch.setattr(saver, "write_checkpoint", full)
    full_at = {4}
    overrides = ["max_duration=8ba", "scheduler.t_warmup=1ba", "save_interval=2ba", "eval_data=null"]
    code, folder = train(tiny, tmp_path, *overrides)
    out = capsys.readouterr().out
    assert (
        code == 0 and "checkpoint of step 4 was not written" in out and "the disk is full" in out and "are free" in out
    )
    assert [p.name for p in sorted(folder.glob("step-*"))] == ["step-00000002", "step-00000006", "step-00000008"]
    full_at = {8}
    code, folder = train(tiny, tmp_path, *overrides, name="last")
    assert code == 1 and "checkpoint of step 8 was not written" in capsys.readouterr().err
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"


def test_an_interrupted_evaluation_is_made_up_for(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.train.composer_model import TokenLoss

    overrides = ["max_duration=8ba", "scheduler.t_warmup=1ba", "save_interval=2ba", "eval_interval=4ba"]
    whole = train(tiny, tmp_path, *overrides, name="whole")[1]
    plain, evaluations, last = TokenLoss.compute, [], {}

    def dies(self):
        evaluations.append(None)
        if len(evaluations) == last["at"]:  # two metrics are computed in each evaluation
            raise KeyboardInterrupt
        return plain(self)

    for last["at"], step in ((4, 4), (6, 8)):  # the evaluations are those of steps 0, 4 and 8
        evaluations.clear()
        monkeypatch.setattr(TokenLoss, "compute", dies)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path, *overrides, name=f"cut-{step}")
        monkeypatch.setattr(TokenLoss, "compute", plain)
        assert step not in rows(tmp_path / f"cut-{step}", "metrics/eval/loss")
        code, folder = train(tiny, tmp_path, *overrides, name=f"cut-{step}")
        assert code == 0 and rows(folder, "metrics/eval/loss") == rows(whole, "metrics/eval/loss")
        assert rows(folder, "train/loss") == rows(whole, "train/loss")


def test_batches_for_a_gpu_count_their_documents_before_they_leave(tiny: Path) -> None:
    from moe.config import load_config
    from moe.model.documents import document_ends
    from moe.train import loaders
    from moe.train.inputs import check_data

    config = load_config(tiny / "tiny.yaml")
    meta = check_data(config, print)
    spec = loaders.build_train_spec(config, meta, 1)
    batch = next(iter(spec.dataloader))
    assert spec.batch_transforms(batch).keys() == {"tokens", "labels"}
    transform = loaders.batch_transforms(config, meta, on_gpu=True)
    parts = spec.split_batch(transform(batch), 3)
    assert [len(part["document_ends"]) for part in parts] == [3, 3, 2]
    assert torch.equal(parts[0]["document_ends"], document_ends(batch["tokens"], meta.eos_id)[:3])
    assert spec.get_num_samples_in_batch(transform(batch)) == 8
    apart = load_config(tiny / "tiny.yaml", ["model.document_mask=false"])
    assert loaders.batch_transforms(apart, meta, on_gpu=True)(batch).keys() == {"tokens", "labels"}


def test_a_compiled_run_with_recomputed_blocks_equals_a_plain_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe.model import Transformer

    # Everything but Inductor, whose C++ takes minutes to compile
    monkeypatch.setattr(Transformer, "compile_blocks", partialmethod(Transformer.compile_blocks, backend="aot_eager"))
    off = ["model.dropout=0", "max_duration=2ba", "scheduler.t_warmup=1ba", "device_train_microbatch_size=3"]
    plain = train(tiny, tmp_path, *off, name="plain")[1]
    compiled = train(tiny, tmp_path, *off, "compile=true", "activation_checkpointing=true", name="compiled")[1]
    for key in ("train/loss", "optim/grad_norm", "experts/load_max", "metrics/eval/loss"):
        assert rows(compiled, key) == pytest.approx(rows(plain, key), rel=1e-5), key
    assert weights(compiled).keys() == weights(plain).keys()


def test_compile_is_automatic_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from moe.train.compiling import wants_compile

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert [wants_compile("auto", on_gpu=on_gpu) for on_gpu in (True, False)] == [True, False]
    assert [wants_compile(setting, on_gpu=False) for setting in (True, False)] == [True, False]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not wants_compile("auto", on_gpu=True)

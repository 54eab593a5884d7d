"""What a run that was killed does next, in this process. rowNN: rows of the table in docs/resume.md.

Runs are 40 steps with dropout; an epoch has 24, so that they cross an epoch's end.
"""

import json
from pathlib import Path

import pytest
import torch

from moe.cli.train import main
from moe.config import load_config
from moe.train.health.spikes import WINDOW, SpikeCounter
from tests.tiny import tiny_config, write_config
from tests.unit.train.runs import EPOCH, assert_same_run, die, rows, train, weights


@pytest.mark.parametrize("workers", [0, 2])
def test_row03_after_a_kill_in_mid_epoch_dropout_and_order_are_those_of_the_whole_run(
    small: Path, tmp_path: Path, whole: Path, workers: int
) -> None:
    """Stock restores the random state at epochs' starts only: with dropout every later step differs."""
    settings = ["eval_data=null", "save_interval=5ba", f"num_workers={workers}"]
    for step in (12, 33):  # in the first epoch and in the second
        die(small, tmp_path, step, *settings)
    code, folder = train(small, tmp_path, *settings)
    assert code == 0
    assert_same_run(folder, whole)


def test_row04_a_checkpoint_of_an_epochs_last_batch_does_not_replay_the_epoch(
    small: Path, tmp_path: Path, whole: Path, capsys
) -> None:
    """Stock saves the dataset's own epoch, which is still the old one there."""
    folder = die(small, tmp_path, EPOCH + 2, f"save_interval={EPOCH}ba")
    manifest = json.loads((folder / f"step-000000{EPOCH}/manifest.json").read_text())
    assert (manifest["epoch"], manifest["sample_in_epoch"]) == (0, EPOCH * 8)
    assert train(small, tmp_path, "eval_data=null")[0] == 0
    assert f"resumed from step {EPOCH}" in capsys.readouterr().out
    assert_same_run(folder, whole)


def test_row04_nor_does_one_that_was_written_after_the_epochs_end(small: Path, tmp_path: Path, monkeypatch) -> None:
    """The clock then says the next epoch, and the dataset, where the position comes from, still the old one."""
    import moe.train.callbacks.saver as saver

    plain, failed = saver.write_checkpoint, []

    def fails_once(folder, step, *args):
        if step == EPOCH and not failed:
            failed.append(step)
            raise OSError(5, "Input/output error")
        return plain(folder, step, *args)

    settings = ["eval_data=null", "scheduler.name=constant_with_warmup", "scheduler.t_warmup=2ba"]
    with monkeypatch.context() as patch:
        patch.setattr(saver, "write_checkpoint", fails_once)
        _, folder = train(small, tmp_path, *settings, f"max_duration={EPOCH}ba")
    manifest = json.loads((folder / f"step-000000{EPOCH}/manifest.json").read_text())
    assert failed and (manifest["epoch"], manifest["sample_in_epoch"]) == (1, 0)
    assert train(small, tmp_path, *settings, "max_duration=40ba")[0] == 0
    uncut = train(small, tmp_path, *settings, "max_duration=40ba", name="uncut")[1]
    assert_same_run(folder, uncut)


def test_row05_retention_counts_checkpoints_of_earlier_starts(small: Path, tmp_path: Path) -> None:
    """Stock keeps N per start."""
    settings = ["save_interval=2ba", "save_num_checkpoints_to_keep=2", "keep_every=10ba"]
    for step in (5, 9, 17):
        folder = die(small, tmp_path, step, *settings)
        newest = (step - 1) // 2 * 2
        kept = {int(path.name[5:]) for path in folder.glob("step-*")}
        # the write of the last save may not have come to its end when the run died
        assert kept - {10} <= {newest - 4, newest - 2, newest, newest + 1} and len(kept - {10}) <= 3
    assert train(small, tmp_path, "eval_data=null", *settings)[0] == 0
    assert sorted(int(path.name[5:]) for path in folder.glob("step-*")) == [10, 20, 30, 38, 40]


def test_resuming_late_in_an_epoch_reads_no_more_than_early(small: Path, tmp_path: Path, monkeypatch) -> None:
    from moe.data import TokenDataset

    read, plain = [], TokenDataset.get_item
    monkeypatch.setattr(TokenDataset, "get_item", lambda self, *args: (read.append(args), plain(self, *args))[1])
    assert train(small, tmp_path, "eval_data=null", "max_duration=5632tok")[0] == 0
    assert len(read) == 22 * 8
    read.clear()
    assert train(small, tmp_path, "eval_data=null", "max_duration=5888tok")[0] == 0
    assert len(read) == 8, "only the samples of the one step that was missing"


@pytest.mark.parametrize(
    ("warmup", "error"),
    [
        ("20480tok", r"scheduler.t_warmup \(20480tok\) is not shorter than max_duration \(10240tok\)"),
        ("40ba", r"scheduler.t_warmup \(40ba\) is not shorter than max_duration \(10240tok\)"),
    ],
)
def test_row12_a_warmup_too_long_in_whichever_unit_is_refused_by_name(small: Path, warmup: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        load_config(small / "tiny.yaml", [f"scheduler.t_warmup={warmup}"])


def test_row13_wandb_keeps_its_run_and_tensorboard_its_steps_over_a_resume(
    small: Path, tmp_path: Path, monkeypatch
) -> None:
    """Stock starts a new W&B run at each start, and TensorBoard draws replayed steps twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from wandb.sdk.wandb_run import Run

    monkeypatch.setenv("WANDB_MODE", "offline")
    logged_there, plain = [], Run.log

    def log(self, row, step):
        logged_there.append((self.id, step))
        plain(self, row, step=step)

    monkeypatch.setattr(Run, "log", log)
    settings = ["loggers.tensorboard={}", "loggers.wandb={project: test, mode: offline}", "save_interval=5ba"]
    settings.append("max_duration=12ba")
    settings.append("scheduler.t_warmup=1ba")
    folder = die(small, tmp_path, 8, *settings)
    first = json.loads((folder / "run.json").read_text())["wandb_id"]
    assert train(small, tmp_path, "eval_data=null", *settings)[0] == 0
    assert json.loads((folder / "run.json").read_text())["wandb_id"] == first
    logged = rows(folder, "train/loss")
    assert list(logged) == list(range(1, 13))
    board = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in board] == list(range(1, 13))
    assert [event.value for event in board] == pytest.approx(list(logged.values()))
    # W&B refuses a step that it has already: what the first start had logged beyond the checkpoint is not doubled
    assert logged_there == [(first, step) for step in [*range(1, 9), *range(6, 13)]]
    assert len(list(folder.glob(f"wandb/offline-run-*-{first}"))) == 2


def test_row14_the_rate_is_the_one_applied_and_both_norms_are_logged(small: Path, tmp_path: Path, monkeypatch) -> None:
    """Stock logs the rate one batch late and the norm after clipping only."""
    from moe.optim.muon import Muon

    applied, plain = [], Muon.step
    monkeypatch.setattr(
        Muon, "step", lambda self, *a, **k: (applied.append(self.param_groups[0]["lr"]), plain(self, *a, **k))[1]
    )
    _, folder = train(
        small, tmp_path, "eval_data=null", "max_duration=8ba", "scheduler.t_warmup=4ba", "gradient_clip_norm=0.5"
    )
    assert list(rows(folder, "optim/lr/muon").values()) == applied and applied[0] > 0
    norm, clipped = rows(folder, "optim/grad_norm"), rows(folder, "optim/grad_norm_clipped")
    assert max(norm.values()) > 0.5 and all(clipped[step] == min(norm[step], 0.5) for step in norm)


def test_loss_spikes_are_counted_and_the_window_survives_a_resume() -> None:
    torch.manual_seed(0)
    losses = 3 + 0.1 * torch.randn(400, dtype=torch.float64)
    losses[50] = 9.0  # before the window is full nothing is a spike
    losses[300], losses[310], losses[320], losses[330] = 3.9, float("nan"), float("inf"), 3.2
    whole = SpikeCounter()
    for loss in losses:
        whole.add(loss)
    mean, deviation = losses[172:300].mean(), losses[172:300].std()
    assert losses[300] > mean + 6 * deviation and losses[330] < mean + 6 * deviation
    assert whole.state["spikes"].item() == 1 and whole.state["seen"].item() == 398
    cut = SpikeCounter()
    for loss in losses[: WINDOW + 100]:
        cut.add(loss)
    resumed = SpikeCounter()
    resumed.load_state_dict({name: value.clone() for name, value in cut.state_dict().items()})
    for loss in losses[WINDOW + 100 :]:
        resumed.add(loss)
    assert all(torch.equal(resumed.state[name], value) for name, value in whole.state.items())


def test_weights_are_compared_in_full(whole: Path) -> None:
    """What `assert_same_run` looks at: every tensor of the model, none of them constant over the run."""
    found = weights(whole)
    assert len(found) > 20 and all(value.float().std() > 0 for value in found.values() if value.numel() > 1)


def test_a_change_that_moves_the_rate_says_from_what_to_what_at_which_step(small: Path, tmp_path: Path, capsys) -> None:
    """D2: another max_duration moved it without a word."""
    short = ["eval_data=null", "max_duration=8ba", "scheduler.t_warmup=2ba", "optimizer.lr=1e-3"]
    assert train(small, tmp_path, *short)[0] == 0
    capsys.readouterr()
    code, folder = train(small, tmp_path, *short, "max_duration=16ba")
    assert code == 0
    applied = rows(folder, "optim/lr/muon")
    told = f"learning rate {applied[8]:.2e} -> {applied[9]:.2e} at step 9"
    assert told in capsys.readouterr().out and applied[9] > 5 * applied[8]
    assert train(small, tmp_path, *short, "max_duration=16ba", "num_workers=1")[0] == 0
    assert "learning rate" not in capsys.readouterr().out


def test_the_rates_change_is_told_for_each_cause() -> None:
    """D2: its peak, its schedule, its warmup, the floor, AdamW's own."""
    from moe.optim.rates import rate_change

    adamw = {"lr": None, "betas": [0.9, 0.95], "eps": 1e-8}
    old = {
        "max_duration": "100ba",
        "global_train_batch_size": 4,
        "max_seq_len": 8,
        "optimizer": {"lr": 1e-3, "name": "muon", "adamw": adamw},
        "scheduler": {"name": "linear_decay_with_warmup", "t_warmup": "10ba", "alpha_f": 0.0, "t_decay": None},
    }

    def with_(section: str, **changes: object) -> dict:
        return {**old, section: {**old[section], **changes}}  # type: ignore[dict-item]

    assert rate_change(old, old, 54) is None
    assert rate_change(old, with_("optimizer", lr=2e-3), 54) == "learning rate 5.00e-04 -> 1.00e-03 at step 55"
    assert rate_change(old, {**old, "max_duration": "3200tok"}, 54) is None, "the same length in tokens"
    assert rate_change(old, {**old, "max_duration": "190ba"}, 99) == "learning rate 0.00e+00 -> 5.00e-04 at step 100"
    assert rate_change(old, with_("scheduler", name="constant_with_warmup"), 54) == (
        "learning rate 5.00e-04 -> 1.00e-03 at step 55"
    )
    assert rate_change(old, with_("optimizer", adamw={**adamw, "lr": 3e-3}), 54) == (
        "AdamW's learning rate 5.00e-04 -> 1.50e-03 at step 55"
    )
    assert rate_change(old, with_("optimizer", adamw={**adamw, "embedding_lr": 4e-3}), 54) == (
        "the embedding's learning rate 5.00e-04 -> 2.00e-03 at step 55"
    )
    alone = {**old, "optimizer": {**old["optimizer"], "name": "adamw", "adamw": {**adamw, "lr": 2e-3}}}  # type: ignore[dict-item]
    halved = {**alone, "optimizer": {**alone["optimizer"], "adamw": {**adamw, "lr": 1e-3}}}
    assert rate_change(alone, halved, 54) == "learning rate 1.00e-03 -> 5.00e-04 at step 55"
    assert rate_change({"max_duration": "9"}, old, 1) is None, "a manifest that cannot tell"


NAMES = ["{run_name}", "exp#3 50% what?", "a:b", "s3:bucket", "file:{rank}-{nope}-ep{epoch}.tar"]
SHORT = ["eval_data=null", "scheduler.name=constant_with_warmup", "scheduler.t_warmup=1ba"]


@pytest.fixture(scope="module")
def plain(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps in a folder of a plain name."""
    return train(small, tmp_path_factory.mktemp("plain"), *SHORT, "max_duration=4ba", name="plain")[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_run_resumes_that_was_found_whatever_its_folder_is_called(
    small: Path, plain: Path, tmp_path: Path, monkeypatch, capsys, name: str
) -> None:
    """A1: `{run_name}` went on with another run's checkpoint, `exp#3` ended in a traceback."""
    monkeypatch.chdir(tmp_path)
    decoy, path = tmp_path / "tiny/step-00000002", write_config(tmp_path / "c.yaml", tiny_config(small))
    decoy.mkdir(parents=True)
    (decoy / "state.pt").write_bytes(b"another run's")
    for steps in (2, 4):
        assert main([str(path), f"save_folder=./{name}", *SHORT, f"max_duration={steps}ba"]) == 0
    out = capsys.readouterr().out
    assert "resumed from step 2" in out
    assert list(rows(tmp_path / name, "train/loss")) == [1, 2, 3, 4]
    assert_same_run(tmp_path / name, plain)


def test_what_is_loaded_is_what_was_verified(small: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A1: a file that changes between the check and the load is refused, not trained on."""
    import moe.train.fit as fit

    short = ["eval_data=null", "scheduler.t_warmup=1ba"]
    folder = train(small, tmp_path, *short, "max_duration=2ba")[1]
    plain = fit.build_callbacks

    def swaps(*args):
        state = folder / "step-00000002/state.pt"
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
        return plain(*args)

    monkeypatch.setattr(fit, "build_callbacks", swaps)
    assert train(small, tmp_path, *short, "max_duration=4ba")[0] == 2
    err = capsys.readouterr().err
    assert "its bytes have changed since it was written" in err and "Traceback" not in err


def test_old_checkpoints_that_cannot_be_removed_are_a_warning_and_tried_again(
    small: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """B5, E8: EBUSY on NFS: "was not written", and the run ended after five."""
    plain = Path.rename

    def busy(self: Path, target):
        if self.name == "step-00000002" and not (tmp_path / "released").exists():
            raise OSError(16, "Device or resource busy", str(self))
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    settings = ["eval_data=null", "save_interval=2ba", "save_num_checkpoints_to_keep=2", "max_failed_saves=1"]
    settings.append("scheduler.name=constant_with_warmup")
    code, folder = train(small, tmp_path, *settings, "max_duration=12ba")
    out = capsys.readouterr()
    assert code == 0 and "was not written" not in out.out + out.err
    told = [line for line in out.out.splitlines() if "cannot be removed" in line]
    assert len(told) == 1 and "step-00000002: Device or resource busy" in told[0] and "training continues" in told[0]
    assert sorted(int(path.name[5:]) for path in folder.glob("step-*")) == [2, 10, 12], "the others are removed"
    (tmp_path / "released").touch()
    assert train(small, tmp_path, *settings, "max_duration=14ba")[0] == 0
    assert sorted(int(path.name[5:]) for path in folder.glob("step-*")) == [12, 14]

"""The real scripts in subprocesses: signals, ranks, faults. They are forked from a process that has imported Composer
(tests/starts.py), and one of each launcher is new; what no signal, rank or trace needs runs in this process, by the
same `main`.

rowNN: rows of the table in docs/resume.md. Kills are in test_chaos.py.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

from moe.cli.train import main
from moe.train.checkpointing.checkpoints import load_state, read_checkpoint
from moe.train.checkpointing.contents import full_content
from tests import starts
from tests.chaos.kills import check_epochs, samples, session_members
from tests.tiny import EVERY_OPTION, tiny_config, write_config
from tests.unit.train.runs import assert_same_run, rows

ROOT = Path(__file__).resolve().parents[2]
COMPOSER = str(Path(sys.executable).with_name("composer"))
TRAIN = str(ROOT / "train.py")
TRACED = str(ROOT / "tests/chaos/traced.py")


def start(command: list[str], log: Path, *, new: bool = False, **env: str) -> subprocess.Popen:
    """A rank that dies in C leaves its stacks in the log and its core beside it."""
    if new:
        command = ["bash", "-c", 'ulimit -c hard; exec "$0" "$@"', *command]
    with open(log, "w") as file:
        return starts.popen(
            command,
            new=new,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **env},
            cwd=log.parent,
        )


def traced(folder: Path, **env: str) -> dict[str, str]:
    """What tests/chaos/traced.py needs to know."""
    return {
        "CHAOS_TRACE": str(folder / "trace"),
        "CHAOS_LIFE": "1",
        "CHAOS_SLOW": "0",
        "PYTHONPATH": str(ROOT),
        **env,
    }


def wait_for(text: str, log: Path, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None, f"ended before {text!r}:\n{log.read_text()}"
        assert time.monotonic() < end, f"no {text!r} in {seconds} s:\n{log.read_text()}"
        time.sleep(0.01)


NEEDS_FSDP2 = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="older torch is refused: moe.train.distributed.sharding"
)


def nobody_left(process: subprocess.Popen) -> None:
    """Python's tracker of shared memory ends a moment after the process."""
    end = time.monotonic() + 20
    while session_members(process.pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def finish(process: subprocess.Popen, log: Path, code: int = 0, seconds: float = 240) -> str:
    assert process.wait(seconds) == code, log.read_text()
    return log.read_text()


# An epoch and a half, so that runs cross an epoch's end; loader workers; dropout; enough steps to be stopped in.
STEPS = {"max_duration": "150ba", "scheduler": {"t_warmup": "10ba"}, "global_train_batch_size": 16}
OFTEN = {"num_workers": 1, "save_interval": "15ba", "eval_interval": "50ba"}


@pytest.fixture(scope="module")
def config(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    settings = tiny_config(tiny, **STEPS, **OFTEN, save_folder=str(folder / "${run_name}"))
    return write_config(folder / "c.yaml", settings)


def here(*command: str) -> str:
    """What a start in this process prints; it ends with 0."""
    with redirect_stdout(io.StringIO()) as out:
        assert main(list(command)) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def reference(config: Path) -> Path:
    epochs = float(here(str(config), "run_name=reference").split(" epochs)")[0].split("(")[-1])
    assert epochs > 1.2, "the reference must cross an epoch's end"
    return config.with_name("reference")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_row01_a_signal_saves_exits_75_and_the_same_command_goes_on(config: Path, reference: Path, number: int) -> None:
    """Stock saves nothing. SIGTERM goes to the whole group, as `timeout` sends it; SIGUSR1 to the rank. The command
    that goes on is a process of its own, or the same `main` in this one.
    """
    name = signal.Signals(number).name.lower()
    log = config.with_name(f"{name}.log")
    settings = [str(config), f"run_name={name}", "save_interval=1000ba"]
    command = [sys.executable, TRAIN, *settings]
    process = start(command, log, new=number == signal.SIGTERM)
    wait_for("step 30/150", log, process)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    stopped = time.monotonic()
    text = finish(process, log, code=75)
    assert time.monotonic() - stopped < 30 and "run the same command again" in text
    saved = sorted(config.with_name(name).glob("step-*"))[-1]
    text = finish(start(command, log), log) if number == signal.SIGTERM else here(*settings)
    assert f"resumed from step {int(saved.name[5:])}" in text and int(saved.name[5:]) >= 30
    assert_same_run(config.with_name(name), reference)


def test_row01_a_second_ctrl_c_ends_at_once_and_loses_nothing_that_was_saved(config: Path) -> None:
    """Saving takes seconds here, so that the second Ctrl+C comes in the middle of the save that the first began."""
    log, folder = config.with_name("twice.log"), config.with_name("twice")
    command = [sys.executable, TRACED, str(config), "run_name=twice", "save_interval=10ba", "eval_data=null"]
    process = start(command, log, **traced(config.parent, CHAOS_SLOW="1.5"))
    wait_for("step 10/150", log, process)
    while not (folder / "step-00000010").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, log.read_text()
    os.killpg(process.pid, signal.SIGINT)
    pressed = time.monotonic()
    text = finish(process, log, code=130)
    assert time.monotonic() - pressed < 3
    while session_members(process.pid):
        assert time.monotonic() - pressed < 30
        time.sleep(0.05)
    text = log.read_text()  # with what Python's tracker of shared memory says after the process
    assert "Traceback" not in text and "leaked" not in text
    from moe.train.checkpointing.checkpoints import newest_checkpoint, step_folders

    assert newest_checkpoint(step_folders(folder))[0].step >= 10


@pytest.fixture(scope="module")
def flags(config: Path) -> list[str]:
    """40 steps that ranks share, without dropout, saved every 20; of a model with every option."""
    settings = ["model.dropout=0", "max_duration=40ba", "save_interval=20ba", "global_train_batch_size=64"]
    settings += [f"model.{name}={value}" for name, value in {**EVERY_OPTION, "balance": "sign"}.items()]
    return [TRACED, str(config), *settings, "eval_data=null"]


def run_ranks(config: Path, command: list[str], life: int, *, new: bool = False, **env: str) -> str:
    log = config.with_name("ranks.log")
    env = traced(config.parent, CHAOS_LIFE=str(life), CHAOS_TRACE=str(config.parent / "ranks.trace"), **env)
    return finish(start(command, log, new=new, **env), log)


@pytest.fixture(scope="module")
def two(config: Path, flags: list[str]) -> Path:
    """Two ranks, each with all weights. The loss of step 39 is infinite on the second."""
    text = run_ranks(config, [COMPOSER, "-n", "2", *flags, "run_name=two"], life=2, new=True, CHAOS_INF="39/1")
    assert text.count("step 40/40") == 1, "only one rank speaks"
    return config.with_name("two")


SCORED = {"names": ["offline_ends", "offline_copy"], "interval": "20ba", "limit": 3}
TASKS = ["eval_tasks=" + json.dumps({**SCORED, "include_path": str(ROOT / "yamls" / "tasks")})]
TASKS = TASKS if find_spec("lm_eval") else []


@pytest.fixture(scope="module")
def sharded(config: Path, flags: list[str]) -> Path:
    """Two ranks that share the weights, and score tasks meanwhile."""
    command = [COMPOSER, "-n", "2", *flags, "run_name=sharded", "parallelism.fsdp2=true", *TASKS]
    text = run_ranks(config, command, life=4)
    assert "2 x CPU, fp32, microbatch 32, FSDP2" in text
    return config.with_name("sharded")


@pytest.fixture(scope="module")
def one(config: Path, flags: list[str]) -> Path:
    run_ranks(config, [sys.executable, *flags, "run_name=one"], life=1)
    return config.with_name("one")


def test_ranks_change_nothing_and_may_change_within_a_run(
    tiny: Path, config: Path, flags: list[str], one: Path, two: Path
) -> None:
    """One rank, two ranks, and two that become one in mid-epoch: the same samples in every step, the same losses."""
    back = config.with_name("back")
    shutil.copytree(two, back)
    shutil.rmtree(back / "step-00000040")
    text = run_ranks(config, [sys.executable, *flags, "run_name=two", f"save_folder={back}"], life=3)
    assert "resumed from step 20" in text
    loss = {folder: rows(folder, "train/loss") for folder in (one, two, back)}
    assert [loss[one][step] for step in range(1, 21)] == pytest.approx([loss[two][s] for s in range(1, 21)], abs=1e-5)
    assert [loss[two][step] for step in range(21, 40)] == pytest.approx(
        [loss[back][s] for s in range(21, 40)], abs=1e-5
    )
    events = [json.loads(line) for line in (config.parent / "ranks.trace").read_text().splitlines()]
    taken = [samples([event for event in events if event["life"] == life]) for life in (1, 2, 3)]
    epoch = json.loads((tiny / "data/meta.json").read_text())["samples"]["train"] // 64
    assert 20 < epoch < 40
    assert taken[0] == taken[1] and list(taken[0]) == list(range(1, 41))
    assert taken[2] == {step: rows for step, rows in taken[0].items() if step > 20}
    check_epochs(taken[0], 40, epoch)


@pytest.fixture(scope="module")
def alone(config: Path, flags: list[str], sharded: Path) -> Path:
    """The second half of `sharded`, on one rank."""
    back = config.with_name("unsharded")
    shutil.copytree(sharded, back)
    shutil.rmtree(back / "step-00000040")
    assert "resumed from step 20" in here(
        *flags[1:], "run_name=sharded", "parallelism.fsdp2=true", f"save_folder={back}"
    )
    return back


@NEEDS_FSDP2
def test_fsdp2_trains_as_ddp_does_and_its_checkpoint_goes_on_on_one_rank_without_it(
    two: Path, sharded: Path, alone: Path
) -> None:
    loss = {folder: rows(folder, "train/loss") for folder in (two, sharded)}
    steps = range(1, 21)
    assert [loss[sharded][step] for step in steps] == pytest.approx([loss[two][step] for step in steps], abs=1e-5)
    state = [full_content(read_checkpoint(folder / "step-00000020")) for folder in (two, sharded)]
    assert len(list((sharded / "step-00000020").glob("shard-*.safetensors"))) == 2
    assert describe(state[0]) == describe(state[1]), "names, shapes and types of weights and optimizer state"
    after = rows(alone, "train/loss")
    assert [after[step] for step in range(21, 41)] == pytest.approx(
        [loss[sharded][step] for step in range(21, 41)], abs=1e-5
    )


@pytest.fixture(scope="module")
def wide(config: Path, flags: list[str], sharded: Path) -> Path:
    """The second half of `sharded`, on four ranks: two replicas of two. Saved after their first step, too."""
    found = config.with_name("wide")
    shutil.copytree(sharded, found)
    shutil.rmtree(found / "step-00000040")
    command = [COMPOSER, "-n", "4", *flags, "run_name=sharded", f"save_folder={found}", "save_interval=21ba"]
    text = run_ranks(config, [*command, "parallelism.fsdp2=true", "parallelism.replicas=2"], life=7)
    assert "resumed from step 20" in text and "4 x CPU, fp32, microbatch 16, FSDP2 in 2 replicas" in text
    return found


@NEEDS_FSDP2
def test_two_ranks_become_two_replicas_of_two_and_lose_nothing(sharded: Path, alone: Path, wide: Path) -> None:
    """HSDP, from a checkpoint of two ranks, against these and against one rank; only the first replica writes."""
    loss = {folder: rows(folder, "train/loss") for folder in (sharded, alone, wide)}
    steps = range(21, 41)
    for other in (sharded, alone):
        assert [loss[wide][step] for step in steps] == pytest.approx([loss[other][step] for step in steps], abs=1e-5)
    assert len(list((wide / "step-00000040").glob("shard-*.safetensors"))) == 2
    found, *others = (
        full_content(read_checkpoint(folder / "step-00000040"))["model"] for folder in (wide, sharded, alone)
    )
    for expected in others:
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-4)


@NEEDS_FSDP2
@pytest.mark.parametrize(("before", "step", "shares"), [("one", 20, True), ("wide", 21, False)])
def test_one_rank_and_four_become_two_whichever_format_the_checkpoint_has(
    config: Path, flags: list[str], request: pytest.FixtureRequest, before: str, step: int, shares: bool
) -> None:
    """What one rank has written, for two that share the model; what four have that shared it, for two without FSDP2."""
    source: Path = request.getfixturevalue(before)
    after = config.with_name(f"two-of-{before}")
    shutil.copytree(source, after)
    shutil.rmtree(after / "step-00000040")
    assert bool([*(after / f"step-{step:08d}").glob("shard-*")]) != shares
    command = [COMPOSER, "-n", "2", *flags, f"save_folder={after}", f"parallelism.fsdp2={str(shares).lower()}"]
    text = run_ranks(config, [*command, f"run_name={'one' if shares else 'sharded'}"], life=8)
    assert f"resumed from step {step}" in text and "2 x CPU" in text and ("FSDP2" in text) == shares
    loss = [rows(folder, "train/loss") for folder in (source, after)]
    steps = range(step + 1, 41)
    assert [loss[1][step] for step in steps] == pytest.approx([loss[0][step] for step in steps], abs=1e-5)


def describe(state: dict) -> dict[str, tuple]:
    """Shape and dtype of each tensor of a checkpoint, by its path."""
    leaves = tree_flatten_with_path({key: state[key] for key in ("model", "optimizers")})[0]
    return {keystr(path): (leaf.shape, leaf.dtype) for path, leaf in leaves if isinstance(leaf, torch.Tensor)}


@NEEDS_FSDP2
def test_fsdp2_that_is_killed_goes_on_with_the_same_losses_and_weights(
    config: Path, flags: list[str], sharded: Path
) -> None:
    log = config.with_name("killed.log")
    command = [COMPOSER, "-n", "2", *flags, "run_name=killed", "parallelism.fsdp2=true", "save_interval=10ba"]
    command += TASKS
    process = start(command, log, **traced(config.parent))
    wait_for("step 12/40", log, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "resumed from step" in run_ranks(config, command, life=6)
    assert_same_run(config.with_name("killed"), sharded)
    for task in ("offline_ends/acc_norm", "offline_copy/exact_match") if TASKS else ():
        assert rows(config.with_name("killed"), f"tasks/{task}") == rows(sharded, f"tasks/{task}"), task
        assert list(rows(sharded, f"tasks/{task}")) == [20, 40]


def test_row08_a_shard_that_goes_missing_or_lies_is_a_clear_error_with_workers_too(tiny: Path, tmp_path: Path) -> None:
    """Stock trains on flipped bytes as garbage, and hangs where a shard is missing."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    settings = tiny_config(tiny, train_data={"local": str(tmp_path / "data"), "verify": "full"}, num_workers=1)
    config = write_config(tmp_path / "c.yaml", {**settings, "save_folder": str(tmp_path / "run"), "eval_data": None})
    shard, log = tmp_path / "data/train/shard.00000.mds", tmp_path / "log"
    good = shard.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    shard.write_bytes(flipped)
    command = [sys.executable, TRAIN, str(config), "stall_timeout=60s"]
    text = finish(start(command, log), log, code=2)
    assert "shard.00000.mds: its bytes changed" in text and "Traceback" not in text
    ids = bytearray(good)
    ids[-40 * 64 :] = b"\xff" * (40 * 64)  # token 65535, in some samples
    shard.write_bytes(ids)
    process = start([*command, "train_data.verify=size"], log)
    text = finish(process, log, code=1)
    assert "shard.00000.mds: token id 65535 in sequence" in text and "the vocabulary has 300" in text
    assert "Traceback" not in text, text
    nobody_left(process)


def test_the_watchdog_ends_a_run_whose_loader_hangs_with_the_workers_stack(config: Path) -> None:
    log, folder = config.with_name("hang.log"), config.with_name("hang")
    command = [sys.executable, TRACED, str(config), "run_name=hang", "stall_timeout=4s", "eval_data=null"]
    process = start(command, log, **traced(config.parent, CHAOS_HANG="400"))
    text = finish(process, log, code=75)
    assert "no progress for 0m04s (stall_timeout) after step" in text and "run the same command again" in text
    assert 'traced.py", line' in text and "in hang" in text, "the worker's stack"
    stacks = list((folder / "stacks").iterdir())
    assert len(stacks) == 1 and "_train_loop" in stacks[0].read_text()
    nobody_left(process)


def test_row10_an_infinite_loss_on_one_rank_skips_the_step_on_both(two: Path) -> None:
    """Stock's NaNMonitor lets it through, and it ruins the weights."""
    assert list(rows(two, "optim/skipped_steps").values()) == [0] * 38 + [1, 1]
    assert all(loss < 10 for step, loss in rows(two, "train/loss").items())
    weights = load_state(two / "step-00000040/state.pt")["state"]["model"]
    assert all(weight.isfinite().all() for weight in weights.values())


def test_bad_input_under_the_launcher_exits_2_without_a_traceback(config: Path) -> None:
    log = config.with_name("bad.log")
    text = finish(start([COMPOSER, TRAIN, str(config), "model.top_k=9", "seeed=1"], log), log, code=2)
    assert "model.top_k (9) exceeds model.n_experts (4); lower top_k" in text
    assert "seeed: unknown key; did you mean seed?" in text and "Traceback" not in text


def test_two_ranks_tokenise_the_text_of_one_as_they_go_and_go_on_from_where_one_stopped(
    tiny: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rank, two, and one again, each for ten steps: the losses of one alone. One rank runs in this process."""
    text = {"dataset": str(tiny / "text.jsonl"), "lanes": 4, "val_fraction": 0.05}
    settings = tiny_config(tiny, **STEPS, num_workers=1, save_folder=str(config.with_name("${run_name}")))
    settings |= {"train_data": {"text": text}, "eval_data": {"text": True, "max_batches": 1}, "eval_interval": "50ba"}
    path = write_config(config.with_name("text.yaml"), settings)
    same = [str(path), "model.dropout=0", "scheduler.name=constant_with_warmup", "scheduler.t_warmup=5ba"]
    assert main([*same, "run_name=text", "max_duration=30ba"]) == 0
    turns = [*same, "run_name=texts"]
    assert main([*turns, "max_duration=10ba"]) == 0
    log = config.with_name("texts.log")
    told = finish(start([COMPOSER, "-n", "2", TRAIN, *turns, "max_duration=20ba"], log), log)
    assert "resumed from step 10" in told
    capsys.readouterr()
    assert main([*turns, "max_duration=30ba"]) == 0
    assert "resumed from step 20" in capsys.readouterr().out
    alone, together = (rows(config.with_name(name), "train/loss") for name in ("text", "texts"))
    assert len(together) == 30 and together == pytest.approx(alone, abs=1e-5)


def test_a_run_under_torchrun_is_stopped_and_resumes(config: Path) -> None:
    """Its resume ended in MissingEnvironmentError: NODE_RANK. torchrun answers 1 to a stop: run.json knows."""
    log, folder = config.with_name("torchrun.log"), config.with_name("torchrun")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", TRAIN]
    command = [*torchrun, str(config), "run_name=torchrun", "eval_data=null", "max_duration=60ba"]
    process = start(command, log, new=True, OMP_NUM_THREADS="1")
    wait_for("step 10/60", log, process)
    process.send_signal(signal.SIGTERM)
    finish(process, log, code=1)
    assert json.loads((folder / "run.json").read_text())["state"] == "stopped"
    out = finish(start(command, log, OMP_NUM_THREADS="1"), log)
    assert "resumed from step" in out and list(rows(folder, "train/loss")) == list(range(1, 61))

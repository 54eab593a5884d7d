"""Several ranks, with and without FSDP2, that become more or fewer: the same sequences, losses and weights.

rowNN: rows of the table in docs/resume.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

from moe.cli.train import main
from moe.train.checkpointing.checkpoints import load_state, read_checkpoint
from moe.train.checkpointing.contents import full_content
from tests.chaos.kills import check_epochs, samples
from tests.e2e.processes import (
    COMPOSER,
    ROOT,
    STEPS,
    TRACED,
    TRAIN,
    finish,
    here,
    make_config,
    start,
    traced,
    wait_for,
)
from tests.tiny import EVERY_OPTION, tiny_config, write_config
from tests.unit.train.runs import assert_same_run, rows

NEEDS_FSDP2 = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="older torch is refused: moe.train.distributed.sharding"
)


@pytest.fixture(scope="module")
def config(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_config(tiny, tmp_path_factory.mktemp("train"))


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


def test_row10_an_infinite_loss_on_one_rank_skips_the_step_on_both(two: Path) -> None:
    """Stock's NaNMonitor lets it through, and it ruins the weights."""
    assert list(rows(two, "optim/skipped_steps").values()) == [0] * 38 + [1, 1]
    assert all(loss < 10 for step, loss in rows(two, "train/loss").items())
    weights = load_state(two / "step-00000040/state.pt")["state"]["model"]
    assert all(weight.isfinite().all() for weight in weights.values())


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

"""What a run logs of its health: names, values, and that a resume goes on counting."""

import json
import math
import mmap
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moe.config import Every, parse_time
from moe.train.callbacks.throughput import memory_gb
from moe.train.logs import RunLog
from moe.train.stop import StopSignal
from tests.conftest import ROOT
from tests.unit.train.runs import die_after, rows, train

SHORT = ["max_duration=6ba", "scheduler.t_warmup=1ba", "eval_interval=6ba", "save_interval=1ba"]
UNTIED = ["model.tie_embeddings=false", "optimizer.weight_decay=0"]


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with an untied head and no weight decay, and what they logged."""
    patch = pytest.MonkeyPatch()
    patch.setattr(StopSignal, "install", lambda self: None)
    code, folder = train(tiny, tmp_path_factory.mktemp("metrics"), *SHORT, *UNTIED)
    patch.undo()
    assert code == 0
    return folder


def test_a_layers_metrics_make_up_the_models(run: Path) -> None:
    combine = {
        "experts/load_max": max,
        "experts/load_min": min,
        "experts/max_vio": max,
        "experts/dead": sum,
        "router/logit_max": max,
        "router/entropy": lambda layers: sum(layers) / 2,
        "train/balance_loss": lambda layers: sum(layers) / 2,
        "train/router_z_loss": lambda layers: sum(layers) / 2,
    }
    for name, whole in combine.items():
        layers = [rows(run, f"{name}/layer_{layer:02d}") for layer in range(2)]
        for step, value in rows(run, name).items():
            assert value == pytest.approx(whole([layer[step] for layer in layers])), (name, step)
    for step in range(1, 7):
        load = rows(run, "experts/load/layer_01")[step]
        assert len(load) == 4 and sum(load) == pytest.approx(4, abs=4e-3)
        assert rows(run, "experts/load_max/layer_01")[step] == pytest.approx(max(load), abs=1e-3)
        assert rows(run, "experts/max_vio/layer_01")[step] == pytest.approx(max(load) - 1, abs=1e-3)
        assert 0 < rows(run, "router/entropy")[step] <= torch.tensor(4.0).log() + 1e-6


def test_weight_and_update_rms_are_those_of_the_checkpoints(run: Path) -> None:
    from moe.train.callbacks.weights import kind_of

    fifth, sixth = (
        torch.load(run / f"step-0000000{step}" / "state.pt", weights_only=False)["state"]["model"] for step in (5, 6)
    )
    kinds: dict[str, list[str]] = {}
    for name in [name for name in sixth if name.startswith("transformer.")]:
        kinds.setdefault(kind_of(name, sixth[name]), []).append(name)
    assert set(kinds) == {"embeddings", "attention", "experts", "router", "norms"}
    for kind, names in kinds.items():
        weights = torch.cat([sixth[name].flatten() for name in names])
        updates = torch.cat([(sixth[name] - fifth[name]).flatten() for name in names])
        assert rows(run, f"weight_rms/{kind}")[6] == pytest.approx(weights.square().mean().sqrt().item())
        assert rows(run, f"update_rms/{kind}")[6] == pytest.approx(updates.square().mean().sqrt().item(), rel=1e-4)


def test_an_optimizer_tells_the_norm_of_each_update() -> None:
    from moe.optim.muon import Muon

    torch.manual_seed(0)
    shapes = {"muon": (6, 4), "muon_gate_up": (3, 8, 4), "adamw": (5, 7)}
    params = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    groups = [
        {"params": [params["muon"]], "kind": "muon", "lr": 0.02, "weight_decay": 0.0},
        {"params": [params["muon_gate_up"]], "kind": "muon", "lr": 0.02, "weight_decay": 0.0, "split": 2},
        {"params": [params["adamw"]], "kind": "adamw", "lr": 0.01, "weight_decay": 0.0},
    ]
    optimizer = Muon(groups)
    for _ in range(3):
        before = {name: p.detach().clone() for name, p in params.items()}
        for p in params.values():
            p.grad = torch.randn_like(p)
        optimizer.update_norms = {}
        optimizer.step()
        for name, p in params.items():
            torch.testing.assert_close(math.prod(optimizer.update_norms[p]), (p.detach() - before[name]).norm())


def test_a_run_whose_rows_are_rarer_has_the_same_weights(tiny: Path, tmp_path: Path, run: Path) -> None:
    """Measuring changes nothing."""
    rare = train(tiny, tmp_path, *SHORT, *UNTIED, "log_interval=3ba")[1]
    assert sorted(rows(rare, "update_rms/experts")) == [3, 6]
    for name in ("weight_rms/experts", "train/loss", "router/entropy", "experts/idle_steps"):
        assert rows(rare, name)[6] == rows(run, name)[6]
    load = [rows(run, "experts/load/layer_00")[step] for step in (4, 5, 6)]
    mean = torch.tensor(load).mean(0).tolist()
    assert rows(rare, "experts/load/layer_00")[6] == pytest.approx(mean, abs=2e-3)


def test_counts_of_experts_go_on_after_a_kill(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    settings = [*SHORT, "log_interval=3ba", "eval_data=null"]
    whole = train(tiny, tmp_path, *settings, name="whole")[1]
    with monkeypatch.context() as patch:
        die_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path, *settings, name="killed")
    assert train(tiny, tmp_path, *settings, name="killed")[0] == 0
    for name in ("experts/load/layer_00", "experts/max_vio", "experts/idle_steps", "train/spike_score"):
        assert rows(tmp_path / "killed", name) == rows(whole, name), name


def test_speed_is_that_of_steps_and_waiting_a_share_of_it(run: Path) -> None:
    for step, seconds in rows(run, "throughput/step_seconds").items():
        assert rows(run, "throughput/tokens_per_sec")[step] == pytest.approx(256 / seconds)
        assert 0 < rows(run, "throughput/data_wait")[step] < 1
        assert 0.01 < rows(run, "memory/process_gb")[step] < 100
        assert 0.01 < rows(run, "memory/page_cache_gb")[step] < 100
    hours = rows(run, "time/train"), rows(run, "time/val"), rows(run, "time/total")
    assert hours[2][6] == pytest.approx(hours[0][6] + hours[1][6]) and hours[1][6] > 0
    assert json.loads((run / "run.json").read_text())["state"] == "done"


def test_a_map_of_a_file_is_page_cache_and_no_memory_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 << 20))
    before = memory_gb()
    pages = np.memmap(tmp_path / "file", np.uint8, "r")
    assert int(pages[::4096].max()) == 0, "each page is read"
    mapped = {name: value - before[name] for name, value in memory_gb().items()}
    assert mapped["memory/page_cache_gb"] > 0.06 and mapped["memory/process_gb"] < 0.02
    own = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # malloc may have as much lying about
    own[:] = b"\1" * len(own)
    assert memory_gb()["memory/process_gb"] - before["memory/process_gb"] > 0.06


def test_the_documentation_lists_every_metric_and_no_other(run: Path) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    table = text[text.index("<!-- metrics") : text.index("<!-- /metrics")]
    listed = dict(re.findall(r"^\| `([^`]+)`(?! \(3\))( \(1\))?", table, re.MULTILINE))
    logged = set()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line).keys() - {"step"}
    forms = {
        r"layer_\d+$": "layer_NN",
        r"^optim/lr/.*": "optim/lr/GROUP",
        r"^(weight|update)_rms/.*": r"\1_rms/KIND",
    }
    for pattern, form in forms.items():
        logged = {re.sub(pattern, form, name) for name in logged}
    on_gpu = {name for name, mark in listed.items() if mark}
    assert on_gpu == {"throughput/device/mfu", "memory/torch_peak_gb"}
    assert logged - on_gpu == set(listed) - on_gpu


def test_the_documentation_lists_every_alarm() -> None:
    from moe.train.health.detectors import Detectors

    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    table = text[text.index("## Alarms") : text.index("## Events")]
    assert re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) == [detector.name for detector in Detectors().all]


def test_mfu_is_the_share_of_the_peak_of_gpus_that_are_known() -> None:
    from moe.model.flops import peak_flops

    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H200": 989e12, "NVIDIA L4": 121e12}
    more = {
        "NVIDIA L40S": 362e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA GeForce RTX 3090": 71.2e12,
        "NVIDIA GeForce RTX 3090 Ti": None,
        "NVIDIA A10G": None,
    }
    for name, peak in {**names, **more}.items():
        assert peak_flops(name) == peak, name


def test_between_two_rows_nothing_waits_for_the_device_and_a_row_waits_twice(
    tiny: Path, tmp_path: Path, monkeypatch
) -> None:
    """Reading a tensor's value is what would wait. The first step of a start waits once: the console tells its loss."""
    from moe.train.callbacks.losses import StepLosses
    from moe.train.callbacks.throughput import Throughput
    from moe.train.callbacks.weights import WeightNorms

    inside: list[int] = []  # the step whose measuring is under way
    waits: dict[int, int] = {}

    def counted(plain):
        def read(self, *args):
            if inside:
                waits[inside[-1]] = waits.get(inside[-1], 0) + 1
            return plain(self, *args)

        return read

    def watched(owner: type, hook: str, ends: int) -> None:
        plain = getattr(owner, hook)

        def call(self, state, logger):
            inside.append(int(state.timestamp.batch) + ends)
            try:
                return plain(self, state, logger)
            finally:
                inside.pop()

        monkeypatch.setattr(owner, hook, call)

    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    for owner, hook, ends in [
        (StepLosses, "batch_start", 1),
        (StepLosses, "before_train_batch", 1),
        (StepLosses, "after_loss", 1),
        (StepLosses, "after_train_batch", 1),
        (StepLosses, "batch_end", 0),
        (WeightNorms, "after_train_batch", 1),
        (WeightNorms, "batch_end", 0),
        (Throughput, "batch_end", 0),
    ]:
        watched(owner, hook, ends)
    assert train(tiny, tmp_path, *SHORT, "log_interval=3ba", "eval_data=null")[0] == 0
    assert waits == {1: 1, 3: 2, 6: 2}


def test_what_a_save_cost_is_told_in_the_next_row_where_an_evaluation_lies_between() -> None:
    rows: list[tuple[int, dict]] = []
    log = RunLog([lambda step, row: rows.append((step, dict(row)))], every=Every(parse_time("30ba"), 1, 10_000))

    def at(step: int) -> SimpleNamespace:
        return SimpleNamespace(timestamp=SimpleNamespace(batch=step))

    log.log_metrics({"checkpoint/blocked_seconds": 0.5, "checkpoint/copy_seconds": 0.25, "loss/other": 2.0}, step=500)
    log.batch_end(at(500), None)
    log.log_metrics({"metrics/eval/loss": 3.0}, step=500)
    log.eval_end(at(500), None)
    log.log_metrics({"loss/other": 1.0}, step=510)
    log.batch_end(at(510), None)
    save = {"checkpoint/blocked_seconds": 0.5, "checkpoint/copy_seconds": 0.25}
    assert rows == [(500, {"metrics/eval/loss": 3.0}), (510, {**save, "loss/other": 1.0})]

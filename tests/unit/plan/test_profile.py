import json
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

import moe.plan.profile
from moe.cli.main import main
from moe.config import load_config
from moe.model.flops import count_parameters, flops_per_token, model_shape
from moe.plan.profile import busy_seconds, deal_out, profile_run
from moe.plan.profile_parts import part_flops
from moe.train.composer_model import build_model
from moe.train.inputs import check_data

DENSE_FIRST = ["model.first_k_dense_replace=1", "model.dense_hidden=48", "model.n_shared_experts=1"]


@pytest.mark.parametrize("more", [[], ["model.tie_embeddings=false"], DENSE_FIRST], ids=str)
def test_the_parts_flops_add_up_to_those_of_the_model(tiny: Path, more: list[str]) -> None:
    settings = load_config(tiny / "tiny.yaml", more).model
    shape = model_shape(settings, 300)
    width = settings.n_layers * settings.n_heads * (settings.d_model // settings.n_heads)
    share = settings.top_k / settings.n_experts
    parts = part_flops(count_parameters(**shape), attention_width=width, seq_len=32, top_share=share)
    assert sum(parts.values()) == pytest.approx(flops_per_token(**shape, seq_len=32))


def test_rows_add_up_to_the_step_and_the_parts_keep_what_they_keep_in_the_model(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny / "tiny.yaml", ["precision=fp32", "num_workers=0", "device_train_microbatch_size=4"])
    inputs = check_data(config, report=lambda line: None)
    told: list[str] = []
    found = profile_run(config, inputs, steps=2, trace=tmp_path / "trace.json", say=told.append)
    parts = [f"timing the {part}" for part in ("attention", "router", "experts", "loss")]
    begins = ["building", "taking 3 steps of 8 x 32", "  the first", "  step 1 of 2", "  step 2", "tracing", *parts]
    begins.append("timing a matrix product")
    assert len(told) == len(begins) and all(map(str.startswith, told, begins)), told
    names = ["attention", "router", "experts", "loss", "optimizer", "waiting for data", "the rest"]
    assert [row.part for row in found.rows] == names
    assert sum(row.seconds for row in found.rows) == pytest.approx(found.step_seconds)
    assert all(row.seconds > 0 for row in found.rows[:6])
    assert sum(row.flops for row in found.rows) == pytest.approx(found.step_flops)
    # an expert's hidden layer of each assignment is kept: 2 (gate, up) x top_k x tokens x expert_hidden x 4 bytes
    assert (
        found.rows[2].saved >= 2 * config.model.n_layers * config.model.top_k * 4 * 32 * config.model.expert_hidden * 4
    )
    weights = sum(p.numel() * 4 for p in build_model(config, check_data(config, print)).parameters())
    assert found.memory["weights"] == found.memory["gradients"] == weights < found.memory["optimizer"] < 2 * weights
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(event.get("name", "").startswith("aten::mm") for event in events)


def test_the_command_prints_a_table_and_refuses_what_cannot_be(tiny: Path, tmp_path: Path, capsys) -> None:
    config = str(tiny / "tiny.yaml")
    assert main(["profile", config, "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line[2:20].strip(): line[20:].split() for line in lines if line.startswith("  ")}
    assert {"attention", "experts", "the step"} <= table.keys() and table["the step"][1] == "100.0%"
    assert main(["profile", config, "--steps", "0"]) == 2
    assert main(["profile", config, "--trace", str(tmp_path / "no/t.json")]) == 2
    assert main(["profile", config, "--trace", str(tmp_path)]) == 2
    assert tmp_path.is_dir()
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["profile", config, "--trace", str(tmp_path / "mine.txt")]) == 2
    assert (tmp_path / "mine.txt").read_text() == "mine"
    err = capsys.readouterr().err
    assert "is a folder; name a file" in err
    assert "--steps (0)" in err and "there is no folder" in err and "Traceback" not in err


def test_a_model_that_one_gpu_cannot_hold_is_told_what_is_left_to_do(tiny: Path, monkeypatch, capsys) -> None:
    def full(*args: object, **settings: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(moe.plan.profile, "profile_run", full)
    words = ["profile", str(tiny / "tiny.yaml"), "device_train_microbatch_size=1"]
    assert main(words) == 2
    assert capsys.readouterr().err.endswith("2 GiB; set activation_checkpointing=true\n")
    assert main([*words, "activation_checkpointing=true", "parallelism.fsdp2=true"]) == 2
    assert "2 GiB; a profile holds the model undivided: give it fewer layers" in capsys.readouterr().err


def test_balanced_deals_the_tokens_out_in_every_layer(tiny: Path, capsys) -> None:
    config = load_config(tiny / "tiny.yaml")
    model = build_model(config, check_data(config, print))
    tokens = torch.full((2, 32), 5)  # all alike: the router would send them all to the same experts
    with torch.no_grad():
        plain = model.transformer(tokens, tokens)
        deal_out(model)
        dealt = model.transformer(tokens, tokens)
    fair = 2 * 32 * config.model.top_k // config.model.n_experts
    assert (dealt.routers.counts_E == fair).all() and plain.routers.counts_E.max() > fair
    model.transformer.compile_blocks("aot_eager")  # as `compile: auto` does on a GPU, by Inductor
    parts = model.transformer(tokens, tokens)
    parts.loss.backward()
    assert (parts.routers.counts_E == fair).all()
    torch._dynamo.reset()
    assert main(["profile", str(tiny / "tiny.yaml"), "--steps", "1", "--balanced"]) == 0
    assert "tokens dealt out evenly" in capsys.readouterr().out


def test_the_gpu_is_busy_while_a_kernel_runs_whoever_else_carries_its_time() -> None:
    def event(number, name, start, end, on=DeviceType.CUDA, note=False):
        return FunctionEvent(
            id=number, name=name, thread=0, start_us=start, end_us=end, use_device="cuda", stack=[], device_type=on,
            is_user_annotation=note,
        )  # fmt: skip

    launch = event(1, "aten::mm", 0, 50, on=DeviceType.CPU)
    launch.append_kernel("gemm", 0, 1000)
    kernels = [event(2, "gemm", 100, 1100), event(3, "copy", 900, 1300), event(4, "add", 1200, 1250)]
    later = event(5, "gemm", 2000, 2500)
    note = event(6, "Optimizer.step#Muon.step", 0, 9000, note=True)
    events = EventList([later, launch, *kernels, note], use_device="cuda")
    assert busy_seconds(events) == pytest.approx((1200 + 500) / 1e6)
    assert busy_seconds([launch, note]) == 0


def test_a_trace_that_was_not_written_is_not_said_to_be(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from torch.profiler import profile

    (tmp_path / "t.json").write_text("{}")
    monkeypatch.setattr(profile, "export_chrome_trace", lambda self, path: None)
    assert main(["profile", str(tiny / "tiny.yaml"), "--steps", "1", "--trace", str(tmp_path / "t.json")]) == 2
    shown = capsys.readouterr()
    assert "could not be written" in shown.err and "trace of a step" not in shown.out

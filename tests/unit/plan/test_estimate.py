"""`moe estimate`."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.config import load_config
from moe.model.step import make_step
from moe.plan.estimate import find_disk, find_fits, find_memory, gpu_memory
from moe.plan.gpus import GPUS
from tests.tiny import tiny_config, write_config

ROOT = Path(__file__).resolve().parents[3]
YAML = str(ROOT / "yamls/500m.yaml")


def estimate(capsys, *args: str) -> dict:
    assert main(["estimate", YAML, "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def _no_data_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_parts_add_up_and_the_page_shows_them(capsys) -> None:
    found = estimate(capsys)
    count = found["parameters"]
    parts = ("embedding", "head", "attention", "router", "experts", "norms")
    assert sum(count[part] for part in parts) == count["total"] == 510_551_040 and count["active"] == 170_812_416
    for memory in found["memory"]["bytes"]:
        names = set(memory) - {"n_gpus", "microbatch", "phase", "total"}
        assert sum(memory[name] for name in names) == memory["total"]
    assert main(["estimate", YAML]) == 0
    page = capsys.readouterr().out
    for text in (
        "510,551,040",
        "19,074 of 256 x 2,048",
        "1.14 G a token",
        "58.5 active, 19.6 total",
        "0.001       0.00109   Moonlight's fit: 0.00102",
        "d_model 768 (64 to 256), tokens 10B",
        "RTX 3080",
        "B200",
    ):
        assert text in page
    assert max(len(line) for line in page.splitlines()) <= 120


def test_time_and_cost_follow_mfu_number_and_price(capsys) -> None:
    found = estimate(capsys, "--mfu", "0.5", "--price", "2", "--price", "h100=3")
    one, two, _ = [fit for fit in found["gpus"] if fit["gpu"] == "H100 80GB"]
    assert one["seconds"] == pytest.approx(found["work"]["flops"] / (989e12 * 0.5))
    assert two["seconds"] == pytest.approx(one["seconds"] / 2) and two["cost"] == pytest.approx(one["cost"])
    assert one["cost"] == pytest.approx(3 * one["seconds"] / 3600)
    other = next(fit for fit in found["gpus"] if fit["gpu"] == "A100 80GB")
    assert other["cost"] == pytest.approx(2 * other["seconds"] / 3600)


def test_a_small_run_shows_no_numbers_rounded_away(capsys) -> None:
    quick = ["estimate", str(ROOT / "yamls/quick.yaml")]
    assert main([*quick, "--price", "2.5"]) == 0
    assert capsys.readouterr().out.count("<0.01") == 2 * len(GPUS)
    assert main(quick) == 0
    page = capsys.readouterr().out
    assert not any(number in page.split() for number in ("0m00s", "0.00", "0.0"))
    h100 = next(line for line in page.splitlines() if line.startswith("  H100 80GB"))
    assert h100.split()[3:7] == ["2", "(2)", "0.38s", "1"]  # 1.14e14 FLOPs at 30% of 989 TFLOP/s
    assert "0.0597 active, 0.0382 total" in page
    weights = next(line.split() for line in page.splitlines() if line.startswith("  weights"))
    assert weights[1:] == ["0.10", "0.052"]
    assert "8 GPUs cannot divide a global_train_batch_size of 2 evenly" in page
    assert max(len(line) for line in page.splitlines()) <= 120


def test_the_largest_microbatch_fits_and_the_next_one_does_not() -> None:
    config = load_config(YAML)
    fits = find_fits(config, 50257, mfu=0.4, prices={})
    for fit in [fit for fit in fits if 0 < fit.microbatch < 256 // fit.n_gpus]:
        gpu = next(gpu for gpu in GPUS if gpu.name == fit.gpu)
        sizes = [
            gpu_memory(make_step(config, 50257, n_gpus=fit.n_gpus, microbatch=fit.microbatch * times)).total
            for times in (1, 2)
        ]
        assert sizes[0] <= gpu.memory < sizes[1]
        assert fit.checkpointed >= fit.microbatch
    assert {fit.gpu for fit in fits} == {gpu.name for gpu in GPUS}


def test_a_microbatch_that_is_set_is_the_one_computed() -> None:
    config = load_config(YAML, ["device_train_microbatch_size=4"])
    assert [found.microbatch for found in find_memory(config, 50257, GPUS[0])] == [4, 4, 4]
    config = load_config(YAML, ["device_train_microbatch_size=100"])
    assert [found.microbatch for found in find_memory(config, 50257, GPUS[0])] == [100, 100, 32], "8 GPUs have 32 each"


@pytest.mark.parametrize(("setting", "gigabytes"), [("auto", 45.1), ("true", 45.1), ("false", 55.7)])
def test_the_memory_is_that_of_the_configs_own_compile_setting(setting, gigabytes) -> None:
    config = load_config(YAML, [f"compile={setting}", "device_train_microbatch_size=32"])
    found = find_memory(config, 50257, GPUS[0])[0]
    assert found.step.total / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_disk_counts_the_newest_those_for_ever_and_the_one_being_written() -> None:
    disk = find_disk(load_config(YAML), 50257)
    assert disk.most == 3 + 10 + 1 and disk.total == disk.most * disk.checkpoint
    assert find_disk(load_config(YAML, ["keep_every=null"]), 50257).most == 4
    assert find_disk(load_config(YAML, ["keep_every=null", "save_num_checkpoints_to_keep=-1"]), 50257).most == 39
    assert find_disk(load_config(YAML, ["keep_every=null", "max_duration=200000000tok"]), 50257).most == 1


def test_the_table_of_yamls_has_the_memory_that_is_computed() -> None:
    rows = re.findall(r"\| `(\w+)` \| .*\| ([\d.]+) GB \|", (ROOT / "docs/training.md").read_text())
    assert {name for name, _ in rows} == {path.stem for path in (ROOT / "yamls").glob("*.yaml")}
    for name, told in rows:
        step = make_step(
            load_config(ROOT / f"yamls/{name}.yaml"),
            {"demo": 8192, "own_text": 8192, "30b_a3b": 151936}.get(name, 50257),
            n_gpus=1,
            microbatch=1,
        )
        found = gpu_memory(step).step
        assert (found.weights * 2 + found.optimizer) / 1e9 == pytest.approx(float(told), abs=0.051), name


def test_the_vocabulary_is_that_of_the_data_then_the_tokenizer_then_the_flag(tiny, tmp_path, capsys) -> None:
    path = str(write_config(tmp_path / "c.yaml", tiny_config(tiny)))
    meta = json.loads((tiny / "data/meta.json").read_text())
    sizes = []
    for settings in ([], ["train_data.local=nowhere"], ["--vocab-size", "999"]):
        assert main(["estimate", path, "--json", *settings]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["vocab_size"])
    assert sizes == [meta["vocab_size"], meta["vocab_size"], 999]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["tokenizer=some/other"], "give --vocab-size"),
        (["--vocab-size", "0"], "--vocab-size (0)"),
        (["--mfu", "40"], "--mfu (40.0)"),
        (["--mfu", "1e-300"], "--mfu (1e-300) must be at least 0.01"),
        (["--vocab-size", "9999999999"], "--vocab-size (9999999999) must be at least 2 and at most 100,000,000"),
        (["--price", "1e300"], "--price (1e300) is not a price from 0 to 1,000,000"),
        (["--gpu", "Voodoo"], "RTX 3080"),
        (["--price", "cheap"], "--price (cheap)"),
        (["model.top_k=9"], "model.top_k (9)"),
    ],
    ids=str,
)
def test_what_cannot_be_estimated_is_told(arguments, error, capsys) -> None:
    assert main(["estimate", YAML, *arguments]) == 2
    assert error in capsys.readouterr().err


def test_a_damaged_description_of_the_data_is_told(tiny, tmp_path, capsys) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/meta.json").write_text('{"vocab_size": "many"}')
    path = str(write_config(tmp_path / "c.yaml", tiny_config(tiny, train_data={"local": str(tmp_path / "data")})))
    assert main(["estimate", path]) == 2
    assert "meta.json: cannot be read" in capsys.readouterr().err


def test_a_full_disk_under_the_output_is_one_message(capfd, monkeypatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115 - cannot be closed: that writes once more
    monkeypatch.setattr("sys.stdout", full)
    assert main(["estimate", YAML, "--vocab-size", "50257"]) == 2
    with suppress(OSError):
        full.close()
    assert capfd.readouterr().err.startswith("error: the output cannot be written: No space left on device; ")


def test_time_is_told_at_30_percent_with_the_span_that_was_published(capsys) -> None:
    found = estimate(capsys)
    one = next(fit for fit in found["gpus"] if fit["gpu"] == "H100 80GB")
    assert found["mfu"] == 0.3 and found["mfu_span"] == [0.2, 0.35]
    assert one["seconds"] == pytest.approx(found["work"]["flops"] / (989e12 * 0.3))
    assert main(["estimate", YAML]) == 0
    page = capsys.readouterr().out
    assert "20% to 35%" in page and "9h07m to 15h58m on 1" in page  # 10h39m x 0.3/0.35 and x 0.3/0.2
    assert main(["estimate", YAML, "--mfu", "0.3"]) == 0
    assert "20% to 35%" not in capsys.readouterr().out, "not where a reader knows better"


def test_the_dense_twin_has_the_active_parameters_and_says_on_how_many_tokens_to_win(capsys) -> None:
    found = estimate(capsys)
    twin = found["dense_twin"]
    router = found["parameters"]["router"]
    # but for the router: one expert still has a row of it in each layer
    assert twin["parameters"] == found["parameters"]["active"] - router + router // 8
    assert twin["moe_seconds"] == pytest.approx(found["work"]["flops_per_token"] / (989e12 * 0.3))
    assert twin["most_tokens"] == pytest.approx(0.3 / 0.4, rel=1e-2)
    assert estimate(capsys, "--mfu", "0.2")["dense_twin"]["most_tokens"] == pytest.approx(0.5, rel=1e-2)
    assert main(["estimate", YAML]) == 0
    assert "at most 75% of the twin's tokens" in capsys.readouterr().out
    dense = ["model.n_experts=1", "model.top_k=1"]
    assert main(["estimate", YAML, *dense]) == 0
    assert "TWIN" not in capsys.readouterr().out, "it is one"


def test_dense_layers_and_the_width_of_qk_norm_are_in_parameters_flops_memory_the_twin_and_the_page(capsys) -> None:
    same = "device_train_microbatch_size=16"
    settings = [same, "model.first_k_dense_replace=2", "model.dense_hidden=3072", "model.qk_norm=full"]
    plain, found = estimate(capsys, same), estimate(capsys, *settings)
    before, count = plain["parameters"], found["parameters"]
    assert count["dense"] == 2 * 3 * 768 * 3072 and before["dense"] == 0
    assert count["experts"] * 12 == before["experts"] * 10 and count["router"] * 12 == before["router"] * 10
    assert count["norms"] - before["norms"] == 12 * (12 + 4 - 2) * 64
    passed = 768 * 3 * (2 * 3072 - 2 * 2 * 2048)  # of a token in two layers: 2 of the experts elsewhere
    assert count["active"] - before["active"] == passed + count["norms"] - before["norms"] - 2 * 8 * 768
    flops = found["work"]["flops_per_token"] - plain["work"]["flops_per_token"]
    assert flops == pytest.approx(6 * (passed - 2 * 8 * 768))
    twin = found["dense_twin"]["parameters"]
    assert twin == pytest.approx(count["active"] - count["router"], rel=1e-3), "as many as are active here"
    for one, other in zip(found["memory"]["bytes"], plain["memory"]["bytes"], strict=True):
        assert one["weights"] == 4 * count["total"] // one["n_gpus"]
        assert one["activations"] < other["activations"], "what a narrow MLP keeps is less than what experts do"
    assert main(["estimate", YAML, *settings]) == 0
    page = capsys.readouterr().out
    assert f"{count['dense']:,}" in page and "8 experts, top 2, 2 dense layers first" in page


def test_a_shared_expert_is_in_parameters_flops_memory_and_the_page(capsys) -> None:
    same = "device_train_microbatch_size=16"
    plain, shared = estimate(capsys, same), estimate(capsys, same, "model.n_shared_experts=1")
    count = shared["parameters"]
    of_one = count["experts"] // 8
    assert count["shared"] == of_one and plain["parameters"]["shared"] == 0
    assert count["total"] - plain["parameters"]["total"] == of_one
    assert count["active"] - plain["parameters"]["active"] == of_one
    assert shared["work"]["flops_per_token"] - plain["work"]["flops_per_token"] == pytest.approx(6 * of_one)
    twin, of_layers = shared["dense_twin"]["parameters"], count["router"]
    assert twin == count["active"] - of_layers + of_layers // 8
    for one, other in zip(shared["memory"]["bytes"], plain["memory"]["bytes"], strict=True):
        assert one["weights"] - other["weights"] == 4 * of_one // one["n_gpus"]
        assert one["activations"] > other["activations"]
    assert main(["estimate", YAML, "model.n_shared_experts=1"]) == 0
    page = capsys.readouterr().out
    assert f"{of_one:,}" in page and "8 experts, top 2, 1 shared" in page

"""`moe new`: a yaml from a few wishes, its numbers, and what it refuses."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.common.units import clock
from moe.config import Config, load_config, parse_time
from moe.model.flops import count_parameters, model_shape
from moe.optim.auto import resolve
from moe.optim.rule import embedding_rate, learning_rate
from moe.plan.cluster import find_machines, find_plans
from moe.plan.gpus import find_gpu
from moe.plan.new import finer
from moe.plan.scaling import for_tokens
from moe.plan.sizing import find_fit, shape_for

ROOT = Path(__file__).resolve().parents[3]
YAMLS = sorted((ROOT / "yamls").glob("*.yaml"), key=lambda path: path.stem)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*words: str, out: str = "mine.yaml") -> Config:
    assert main(["new", *words, "--out", out]) == 0
    return load_config(out)


def write_meta(folder: Path, **changes: object) -> None:
    """That of converted data."""
    lengths = {"mean": 1.0, "p50": 1.0, "p99": 1.0, "max": 1.0}
    counts = {key: {"train": 1, "val": 1} for key in ("documents", "tokens", "samples", "dropped_tokens")}
    texts = dict.fromkeys(("dataset", "split", "text_column", "tokenizer", "tokenizer_fingerprint", "dtype"), "x")
    numbers = dict.fromkeys(("vocab_size", "eos_id", "seq_len", "seed", "text_bytes"), 100)
    nothing: dict = {key: {} for key in ("skipped", "skipped_examples", "left_out", "versions")}
    folder.mkdir()
    meta = {**texts, **numbers, **counts, **nothing, "val_fraction": 0.1, "tokens_per_document": lengths, "format": 1}
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def size(config: Config) -> tuple[int, int]:
    count = count_parameters(**model_shape(config.model, 50257))
    return count.total, count.active


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_like_a_yaml_of_ours_gives_its_settings_again(path: Path) -> None:
    """Its intervals, evaluations and what is kept for ever follow from its tokens and batch alone."""
    ours = load_config(path)
    words = ["--like", path.stem, "--tokens", ours.max_duration.removesuffix("tok"), "--vocab-size", "50257"]
    found = new(*words, "--gpus", "8" if path.stem == "30b_a3b" else "1")
    assert replace(found, run_name=ours.run_name, save_folder=ours.save_folder) == resolve(ours)[0]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_what_is_derived_is_computed_and_not_copied(path: Path) -> None:
    ours = load_config(path)
    blank = replace(ours, save_interval="7ba", eval_interval="7ba", keep_every="7tok")
    assert for_tokens(blank, None, 1) == ours


def test_the_yaml_says_what_it_was_made_of_and_prints_its_estimate(elsewhere: Path, capsys) -> None:
    config = new("--tokens", "10B", "--gpu", "4090", "--hours", "24")
    text, shown = (elsewhere / "mine.yaml").read_text(), capsys.readouterr().out
    total, active = size(config)
    fit = find_fit(config, 50257, find_gpu("4090"), 1)
    assert 20 * 3600 < fit.seconds <= 24 * 3600 and fit.microbatch, "the largest that a day allows"
    assert f"model: # {total:,} parameters, {active:,} active per token" in text
    assert "Written by: moe new --tokens 10B --gpu 4090 --gpus 1 --hours 24\n" in text
    assert "mine.yaml is written" in shown and "MEMORY of one RTX 4090 24GB" in shown
    assert (config.global_train_batch_size, config.run_name) == (256, "mine")
    rate = learning_rate(d_model=config.model.d_model, tokens=10e9, batch=524_288)
    assert config.optimizer.lr == pytest.approx(rate, rel=5e-3)
    assert max(map(len, text.splitlines())) <= 140


def test_without_hours_it_is_as_large_as_20_tokens_a_parameter() -> None:
    config = new("--tokens", "10B")
    ours = load_config(ROOT / "yamls/500m.yaml").model
    assert replace(config.model, expert_hidden=ours.expert_hidden) == ours, "the shape of 500m"
    assert size(config)[0] == pytest.approx(500e6, rel=0.03)


@pytest.mark.parametrize(("flag", "place"), [("--params", 0), ("--active", 1)])
def test_a_size_that_is_asked_for_is_met(flag: str, place: int) -> None:
    for asked in (20e6, 42e6, 90e6, 170e6, 520e6, 1.1e9):
        begun_with = load_config(ROOT / "yamls/500m.yaml").model
        model = finer(begun_with) if place else begun_with
        shape = shape_for(model, 50257, int(asked), active=place == 1)
        assert 1.9 <= shape.top_k * shape.expert_hidden / shape.d_model <= 8.1
        assert shape.d_model % shape.n_heads == 0 and shape.n_heads % shape.n_kv_heads == 0
        count = count_parameters(**model_shape(shape, 50257))
        assert (count.total, count.active)[place] == pytest.approx(asked, rel=0.06)


def test_active_parameters_take_finer_experts_and_a_number_of_all_keeps_those_of_500m() -> None:
    """What stages B and D of docs/learning.md decided."""
    total, active = size(coarse := new("--tokens", "10B", "--params", "500M"))
    fine = new("--tokens", "10B", "--active", f"{active / 1e6:.0f}M", out="fine.yaml")
    experts = [(config.model.n_experts, config.model.top_k) for config in (coarse, fine)]
    assert experts == [(8, 2), (32, 4)]
    assert size(fine)[1] == pytest.approx(active, rel=0.03) and 1.6 < size(fine)[0] / total < 2.2


def test_more_tokens_mean_a_larger_batch_that_the_gpus_divide_and_the_rules_rate() -> None:
    config = new("--like", "500m", "--tokens", "100B", "--gpus", "6")
    assert config.model == load_config(ROOT / "yamls/500m.yaml").model
    assert config.global_train_batch_size == 576 == 6 * 96  # 256 x 10^0.383 = 618, within 10% in steps of lcm(64, 6)
    rate = learning_rate(d_model=768, tokens=1e11, batch=576 * 2048)
    assert config.optimizer.lr == pytest.approx(rate, rel=5e-3)
    assert config.keep_every == "10000000000tok" and config.eval_data is not None and config.eval_data.max_batches == 9


def test_a_model_too_large_for_one_card_is_divided_and_computed_again() -> None:
    config = new("--tokens", "20B", "--params", "4B", "--gpu", "A100 40GB", "--gpus", "8")
    assert config.parallelism.fsdp2
    alone = new("--like", "1b", "--gpu", "4080", out="alone.yaml")
    assert alone.activation_checkpointing and not alone.parallelism.fsdp2


def test_data_that_are_there_decide_sequences_and_tokenizer(elsewhere: Path) -> None:
    write_meta(elsewhere / "d", seq_len=512, tokenizer="./tok", vocab_size=1000)
    config = new("--tokens", "1B", "--params", "50M", "--data", "d")
    assert (config.max_seq_len, config.train_data.local) == (512, "d") and config.tokenizer.endswith("tok")
    assert config.eval_data is not None and config.eval_data.local == "d"
    assert config.global_train_batch_size == pytest.approx(1024 * 0.1**0.383, rel=0.07)


def test_data_that_are_not_there_yet_are_told(elsewhere: Path, capsys) -> None:
    assert main(["new", "--tokens", "1B", "--params", "50M", "--data", "later", "--out", "mine.yaml"]) == 0
    words = "--tokenizer openai-community/gpt2 --seq-len 2048 --out later"
    assert f"later holds no converted data yet; before the run: moe convert {words}" in capsys.readouterr().out


@pytest.mark.parametrize("data", ["s3://b/x", "mine.txt"])
def test_data_that_are_no_folder_are_refused_and_leave_no_file(elsewhere: Path, capsys, data: str) -> None:
    (elsewhere / "mine.txt").write_text("text")
    assert main(["new", "--tokens", "1B", "--params", "50M", "--data", data, "--out", "mine.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --data ({data}) ") and not (elsewhere / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tokens", "10B", "--params", "3B", "--gpu", "3080"], ("needs", "has 10.74 GB", "--params ", "--gpu 'A100")),
        (["--tokens", "10B", "--params", "500M", "--gpu", "4090", "--hours", "24"],
         ("takes 2d14h on 1 x RTX 4090 24GB, more than", "--hours 63", "--gpus 4", "--params 15", "--gpu '")),
        (["--tokens", "10B", "--hours", "0.001"],
         ("a run of 7.35M parameters, the smallest shape,", "more than --hours 0.001; it would with --hours 1")),
        (["--tokens", "10k"], ("--tokens (10k) makes", "give at least")),
        (["--tokens", "1B", "--params", "1k"], ("--params (1k): the nearest shape has 7.35", "M; ask for about that")),
        (["--tokens", "1B", "--params", "500T"], ("--params (500T): the nearest shape has 6.74T; ask",)),
        (["--tokens", "1B", "--active", "900B"], ("needs 86,0", "it would with --params 6", " in the place of --a")),
        (["--tokens", "1B", "--gpu", ""], ("GPU () is not known",)),
        (["--tokens", "1B", "--gpu", "mine", "--gpu-memory", "48GB"], ("describe a card together; give both",)),
        (["--tokens", "1B", "--data", "a\nb"], ("a yaml cannot hold its name",)),
        (["--tokens", "1B", "--data", "\udcff"], ("a yaml cannot hold its name",)),
        (["--tokens", "1B", "--data", "x" * 300], ("--data (", "is too long")),
        (["--tokens", "lots"], ("--tokens (lots): write a number from 1 to 1,000T, such as 10B",)),
        (["--tokens", "0"], ("--tokens (0): write a number from 1 to 1,000T",)),
        (["--tokens", "1B", "--gpus", "0"], ("--gpus (0) must be at least 1",)),
        (["--tokens", "1B", "--hours", "nan"], ("--hours (nan) must be above 0",)),
        (["--tokens", "1B", "--gpu", "abacus"], ("GPU (abacus) is not known",)),
        (["--tokens", "1B", "--like", "7b"], ("there is no yaml '7b'",)),
        (["--params", "1B"], ("give --tokens",)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_message_that_names_what_would(
    words: list[str], told: tuple[str, ...], elsewhere: Path, capsys
) -> None:
    assert main(["new", *words, "--out", "mine.yaml"]) == 2
    error = capsys.readouterr().err
    assert all(text in error for text in told) and error.count("\n") == 1, error
    assert not (elsewhere / "mine.yaml").exists()


def test_a_file_that_is_there_is_never_written_over(elsewhere: Path, capsys) -> None:
    (elsewhere / "mine.yaml").write_text("mine")
    assert main(["new", "--tokens", "1B", "--out", "mine.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err and (elsewhere / "mine.yaml").read_text() == "mine"


def test_its_yaml_passes_the_check_where_the_data_are_there(tiny: Path, elsewhere: Path, capsys) -> None:
    config = new("--tokens", "40k", "--data", str(tiny / "data"))
    assert config.max_seq_len == 32 and config.tokenizer == str(tiny / "tokenizer")
    capsys.readouterr()
    code = main(["check", "mine.yaml", "--fast"])
    shown = capsys.readouterr().out
    assert code == 0 and " 0 fail" in shown, shown
    assert "pass  learning rate" in shown and "pass  ranks" not in shown


def test_a_name_that_no_run_can_have_is_refused_and_leaves_no_file(elsewhere: Path, capsys) -> None:
    assert main(["new", "--tokens", "1B", "--out", "my run.yaml"]) == 2
    assert "--out (my run.yaml): its name is the run's" in capsys.readouterr().err
    assert not (elsewhere / "my run.yaml").exists()


@pytest.mark.parametrize("tokens", ["10k", "1k"])
def test_the_least_number_of_tokens_that_is_named_is_enough(tokens: str, elsewhere: Path, capsys) -> None:
    assert main(["new", "--tokens", tokens, "--out", "few.yaml"]) == 2
    least = re.search(r"give at least ([\d.]+[kM])", capsys.readouterr().err)
    assert least and main(["new", "--tokens", least[1], "--out", "enough.yaml"]) == 0


@pytest.mark.parametrize(
    ("words", "batch"),
    [("--gpus 7", 280), ("--gpus 3", 240), ("--gpus 100", 300), ("--gpus 8", 256), ("--tokens 1B", 96)],
)
def test_the_batch_is_near_the_law_whatever_the_number_of_gpus(words: str, batch: int) -> None:
    """The law gives 256 for 10B tokens and 106 for 1B; a change of 10% is taken for a number that more GPUs divide."""
    given = words.split()
    tokens = [] if "--tokens" in given else ["--tokens", "10B"]
    assert new("--params", "50M", *tokens, *given).global_train_batch_size == batch


def test_another_batch_than_the_yamls_takes_the_rules_rate() -> None:
    config = new("--like", "500m", "--gpus", "7")
    rate = learning_rate(d_model=768, tokens=10e9, batch=280 * 2048)
    assert config.global_train_batch_size == 280 and config.optimizer.lr == pytest.approx(rate, rel=5e-3)


@pytest.mark.parametrize("tokens", [40_960, 50_000, 100_000, 200_000, 500_000, 1e6, 1e7, 1e8, 1e9, 1e11])
def test_evaluations_read_at_most_a_tenth_of_the_tokens_that_before_the_first_step_too(tokens: float) -> None:
    config = for_tokens(load_config(ROOT / "yamls/500m.yaml"), int(tokens), 1)
    assert config.eval_data is not None
    batch = config.global_train_batch_size * config.max_seq_len
    steps = -(-int(tokens) // batch)
    times = -(-steps // parse_time(config.eval_interval).to_steps(batch)) + config.eval_first
    assert config.eval_first or steps < 20, "it is left out only where two of one batch are too many"
    assert 0 < times * config.eval_data.max_batches * batch <= 0.1 * steps * batch


def test_what_the_yaml_asks_for_is_part_of_the_time(elsewhere: Path, capsys) -> None:
    words = ["--like", "30b_a3b", "--gpus", "8", "--gpu", "B200", "--vocab-size", "151936"]
    config = new(*words)
    assert config.activation_checkpointing
    fit = find_fit(config, 151936, find_gpu("B200"), 8)
    assert fit.checkpointing and fit.sharded
    shown = capsys.readouterr().out
    head = (elsewhere / "mine.yaml").read_text()
    assert f"{clock(fit.seconds)} at 30% of the peak" in head and clock(fit.seconds) in shown
    hours = str(int(fit.seconds / 3600))
    assert main(["new", *words, "--hours", hours, "--out", "short.yaml"]) == 2


SUGGESTED = [
    "--like 1b --gpu 4090 --hours 100",
    "--like 500m_fine --gpu 3080",
    "--like 30b_a3b --gpus 8 --hours 30 --vocab-size 151936",
    "--like 30b_a3b --gpu 4090 --hours 30 --vocab-size 151936",
    "--tokens 10B --params 30B --gpus 8 --hours 24",
    "--like 1_5b --gpu 4090 --gpus 3 --hours 30",
    "--tokens 15T --active 1B --gpu L40S --hours 1000",
    "--tokens 10B --active 900M --hours 20",
    "--tokens 10B --gpu 3080 --hours 1",
    "--gpu mine --gpu-memory 48GB --gpu-tflops 180 --params 500M --tokens 10B --hours 24",
    "--like 500m --gpu mine --gpu-memory 6GB --gpu-tflops 50 --hours 100",
]


@pytest.mark.parametrize("words", SUGGESTED)
def test_every_change_that_is_suggested_is_enough(words: str, elsewhere: Path, capsys) -> None:
    given = words.split()
    assert main(["new", *given, "--out", "mine.yaml"]) == 2
    told = capsys.readouterr().err
    assert "e+" not in told and "; it would with " in told
    for number, change in enumerate(told.strip().partition("; it would with ")[2].split(", or ")):
        flags, _, instead = change.partition(" in the place of ")
        changed = shlex.split(flags)
        left = without(given, *(word for word in changed if word.startswith("--")), *instead.split(" and "))
        assert main(["new", *left, *changed, "--out", f"mine{number}.yaml"]) == 0, (change, capsys.readouterr().err)


def without(words: list[str], *flags: str) -> list[str]:
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for pair in pairs if pair[0] not in flags for word in pair]


def test_a_card_that_is_not_known_is_described(elsewhere: Path, capsys) -> None:
    config = new("--tokens", "1B", "--gpu", "mine", "--gpu-memory", "48GB", "--gpu-tflops", "180", "--hours", "2")
    assert size(config)[0] > 20e6 and "MEMORY of one mine" in capsys.readouterr().out


def test_an_embedding_that_is_no_head_gets_the_rules_rate() -> None:
    config = new("--like", "30b_a3b", "--tokens", "100B", "--gpus", "8", "--gpu", "B200", "--vocab-size", "151936")
    wanted = embedding_rate(config.optimizer.lr, d_model=config.model.d_model, tied=False)
    assert config.optimizer.adamw.embedding_lr == pytest.approx(wanted, rel=5e-3) and wanted > config.optimizer.lr


def test_several_gpus_have_their_own_estimate_and_command(elsewhere: Path, capsys) -> None:
    new("--tokens", "10B", "--params", "500M", "--gpus", "3")
    assert "CLUSTER of 3 H100 80GB" in capsys.readouterr().out
    assert "#   moe launch -n 3 mine.yaml\n" in (elsewhere / "mine.yaml").read_text()
    (elsewhere / "sub").mkdir()
    new("--tokens", "10B", "--params", "500M", "--gpus", "64", out="sub/many.yaml")
    assert "CLUSTER of 64 H100 80GB, 8 machines of 8" in capsys.readouterr().out
    text = (elsewhere / "sub/many.yaml").read_text()
    assert "#   moe check sub/many.yaml" in text and "moe launch -n 8 sub/many.yaml --nodes 8 ..." in text


def test_the_command_that_wrote_it_can_be_given_again(elsewhere: Path) -> None:
    write_meta(elsewhere / "my data", tokenizer="openai-community/gpt2", vocab_size=50257, seq_len=512)
    config = new("--tokens", "1B", "--gpu", "RTX 4090 24GB", "--data", "my data", "--params", "50M")
    again = re.search(r"Written by: moe (new .*)", (elsewhere / "mine.yaml").read_text())
    assert again
    second = new(*shlex.split(again[1])[1:], out="b.yaml")
    assert replace(second, run_name=config.run_name, save_folder=config.save_folder) == config


def test_the_home_folder_is_known_where_no_shell_has_seen_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    write_meta(elsewhere / "d", seq_len=512, vocab_size=1000)
    config = new("--tokens", "1B", "--params", "50M", "--data", "~/d")
    assert (config.max_seq_len, config.train_data.local) == (512, str(elsewhere / "d"))


@pytest.mark.parametrize(
    "changes",
    [{"seq_len": -5}, {"seq_len": 0}, {"seq_len": 1e400}, {"vocab_size": 0}, {"vocab_size": -3}, {"vocab_size": 1e400}],
    ids=str,
)
def test_a_meta_json_with_numbers_that_none_has_is_refused(changes: dict, elsewhere: Path, capsys) -> None:
    write_meta(elsewhere / "d", **changes)
    assert main(["new", "--tokens", "1B", "--data", "d", "--out", "mine.yaml"]) == 2
    assert "d/meta.json cannot be read" in capsys.readouterr().err
    assert main(["estimate", str(ROOT / "yamls/500m.yaml"), "train_data.local=d"]) == ("vocab_size" in changes) * 2


def test_what_is_kept_for_ever_is_explained_only_where_something_is(elsewhere: Path) -> None:
    assert new("--tokens", "1B", "--params", "50M").keep_every is None
    assert "each tenth" not in (elsewhere / "mine.yaml").read_text()


@pytest.mark.parametrize("tokens", ["100k", "1M", "10M", "3B"])
def test_the_rule_is_said_to_give_what_it_gave(tokens: str, elsewhere: Path) -> None:
    config = new("--tokens", tokens, "--params", "20M")
    text = (elsewhere / "mine.yaml").read_text()
    assert f"the rule gives {config.optimizer.lr:.3g}, " in text
    assert f"the rule gives {config.optimizer.weight_decay:.3g}\n" in text


@pytest.mark.parametrize(
    "words",
    [
        "--tokens 10B --params 1.2B --gpu 4090 --gpus 8",
        "--tokens 10B --params 500M --gpu 3080 --gpus 2",
        "--tokens 10B --params 500M --gpu 3080 --gpus 8",
        "--tokens 10B --params 1.4B --gpu 4090 --gpus 4",
        "--tokens 10B --params 5B --gpu H100 --gpus 8",
        "--tokens 10B --params 100M --gpu 4090 --gpus 2",
        "--like 500m --gpu 3080 --gpus 8",
    ],
)
def test_several_gpus_hold_what_the_estimate_of_several_says(words: str, elsewhere: Path) -> None:
    given = words.split()
    config, n_gpus = new(*given), int(given[-1])
    machines = find_machines(n_gpus, n_gpus, "400Gb", config)
    ddp, fsdp2, *_ = find_plans(config, 50257, find_gpu(given[given.index("--gpu") + 1]), machines, mfu=0.3)
    taken = fsdp2 if config.parallelism.fsdp2 else ddp
    assert taken.fits and (ddp.fits != config.parallelism.fsdp2)
    assert f"microbatch {taken.microbatch}. " in (elsewhere / "mine.yaml").read_text()


def test_a_batch_far_from_the_law_is_told(elsewhere: Path) -> None:
    new("--tokens", "10B", "--params", "500M", "--gpus", "300")
    assert "; 300 GPUs divide it, the law gives 256\n" in (elsewhere / "mine.yaml").read_text()


def test_another_size_is_not_suggested_where_it_would_be_a_run_on_other_data(capsys) -> None:
    assert main(["new", "--like", "30b_a3b", "--vocab-size", "151936", "--out", "mine.yaml"]) == 2
    told = capsys.readouterr().err
    assert "--params" not in told and "--gpus " in told


def test_the_name_of_the_run_is_the_files() -> None:
    assert new("--tokens", "1B", "--params", "50M", out="v1.2.yaml").run_name == "v1.2"

import re
from pathlib import Path

import pytest
import yaml

from moe.config import ConfigError, load_config, to_yaml
from tests.unit.config.found import errors

ROOT = Path(__file__).resolve().parents[3]


def test_overrides_win_over_the_file_and_keep_their_types(path: Path) -> None:
    config = load_config(path, ["optimizer.lr=5e-4", "max_duration=80ba", "scheduler.t_warmup=8ba", "eval_data=null"])
    assert (config.optimizer.lr, config.max_duration, config.eval_data) == (5e-4, "80ba", None)


def test_an_override_can_fill_a_section_that_the_file_sets_to_null(path: Path) -> None:
    config = load_config(path, ["loggers.wandb.project=x", "loggers.wandb.mode=offline"])
    assert config.loggers.wandb is not None and config.loggers.wandb.project == "x"


def test_all_errors_are_reported_at_once_each_with_path_value_and_mend(path: Path) -> None:
    found = errors(path, "mdoel.d_model=3", "seed=abc", "model.d_modle=3", "precision=bf16", "eval_data.locl=x", "oops")
    text = "\n".join(found)
    assert len(found) == 6
    assert "mdoel: unknown key; did you mean model?" in text
    assert "seed: is 'abc'" in text
    assert "model.d_modle: unknown key; did you mean model.d_model?" in text
    assert "precision: is 'bf16'" in text and "amp_bf16" in text
    assert "eval_data.locl: unknown key; did you mean eval_data.local?" in text
    assert "oops: is not an override" in text


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=abc", "seed: is 'abc'; write a whole number"),
        ("max_seq_len=1.5", "max_seq_len: is 1.5; write a whole number"),
        ("model.n_heads=null", "model.n_heads: is null; write a whole number"),
        ("model.head_dim=x", "model.head_dim: is 'x'; write a whole number"),
        ("model.dropout=x", "model.dropout: is 'x'; write a number"),
        ("autoresume=3x", "autoresume: is '3x'; write true or false"),
        ("run_name=[1, 2]", "run_name: is [1, 2]; write text"),
        ("optimizer.name=sgd", "optimizer.name: is 'sgd'; write muon or adamw"),
    ],
)
def test_a_value_of_another_type_is_told_with_what_to_write(path: Path, override: str, told: str) -> None:
    assert told in errors(path, override)


def test_a_file_that_cannot_be_read_is_told_with_those_that_can(path: Path, tmp_path: Path) -> None:
    for name in ("other.yaml", ""):
        with pytest.raises(ConfigError, match=f"(no such file|is a folder); there are: .*{path.name}"):
            load_config(path.parent / name)
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="no such file; `moe yaml` lists those to begin with"):
        load_config(tmp_path / "none" / "c.yaml")
    path.write_text("a: [1\nb: 2\n")
    with pytest.raises(ConfigError, match=r"is not valid yaml: .* at line 2, column 2") as error:
        load_config(path)
    assert "<unicode" not in str(error.value)


def test_errors_between_settings_are_told_with_those_of_type_unless_they_are_about_them(path: Path) -> None:
    found = errors(path, "seed=abc", "model.top_k=9", "save_interval=500", "optimizer.lr=fast", "max_duration=7")
    told = [re.split(r"[: (]", error)[0] for error in found]
    assert sorted(told) == ["max_duration", "model.top_k", "optimizer.lr", "save_interval", "seed"]
    found = errors(path, "model.n_experts=many", "model.top_k=9", "train_data.local=[x]", "max_seq_len=???", "seed=-1")
    assert sorted(re.split(r"[: (]", error)[0] for error in found) == [
        "max_seq_len",
        "model.n_experts",
        "seed",
        "train_data.local",
    ], "top_k is held against n_experts, which is not known"


def test_missing_keys_are_named_once_a_section(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run_name: x\nmodel: {d_model: 8}\n")
    found = [line.split(":")[0] for line in errors(tmp_path / "c.yaml")]
    assert {"model.n_layers", "optimizer", "train_data", "max_duration", "tokenizer"} <= set(found)
    assert len(found) == len(set(found)) and "optimizer.lr" not in found


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.top_k=9"], r"model\.top_k \(9\) exceeds model\.n_experts \(4\); lower"),
        (["model.n_kv_heads=3"], r"n_heads \(2\) is not divisible by model\.n_kv_heads \(3\)"),
        (["model.d_model=33"], r"model\.d_model \(33\) is not divisible by model\.n_heads"),
        (["scheduler.t_warmup=40ba"], r"t_warmup \(40ba\) is not shorter than max_duration \(10240tok\); shorten it"),
        (
            ["scheduler={name: wsd, t_warmup: 30ba, t_decay: 2816tok}"],
            r"t_warmup and scheduler\.t_decay together exceed",
        ),
        (["scheduler.t_warmup=10240tok"], r"t_warmup \(10240tok\) is not shorter than max_duration"),
        (["save_interval=500"], r"save_interval \(500\) is not a duration"),
        (["max_duration=1ep"], r"max_duration \(1ep\) is not a duration"),
        (["save_folder="], r"save_folder"),
        (["save_folder=''"], r"save_folder is empty with autoresume: true"),
        (["resume_from=5000"], r"resume_from \(5000\) must name a step, as step:5000"),
        (["alert_command='echo \"half'"], r"alert_command \(echo \"half\) cannot be read: No closing quotation"),
        (["alert_command=no-such-program -x"], r"alert_command .* there is no program 'no-such-program'"),
        (["optimizer.lr=0"], r"optimizer\.lr \(0\.0\) must be above 0"),
        (["optimizer.lr=nan"], r"optimizer\.lr \(nan\) must be above 0"),
        (["device_train_microbatch_size=big"], r"device_train_microbatch_size \(big\) must be an integer"),
        (["compile=maybe"], r"compile \(maybe\) must be auto, true or false"),
        (["scheduler.name=wsd"], r"scheduler\.t_decay \(None\) needs scheduler\.name wsd"),
        (["run_name=a/b"], r"run_name \(a/b\) must be letters"),
        (["save_num_checkpoints_to_keep=0"], r"save_num_checkpoints_to_keep \(0\) keeps nothing"),
        (["optimizer.adamw.betas=[0.9, 1.5]"], r"optimizer\.adamw\.betas \(\[0\.9, 1\.5\]\) must lie in"),
        (["model=3"], r"model"),
        (["model.head_dim=-2"], r"model\.head_dim \(-2\) must be an even number"),
        (["model.dropout=.nan"], r"model\.dropout \(nan\) must be at least 0 and at most 0\.999"),
        (["optimizer.lr=11"], r"optimizer\.lr \(11\.0\) must be above 0 and at most 10$"),
        (["optimizer.adamw.lr=600"], r"optimizer\.adamw\.lr \(600\.0\) must be above 0 and at most 10$"),
        (["model.rope_theta=1e300"], r"model\.rope_theta \(1e\+300\) must be above 0 and at most 1,000,000,000,000"),
        (["num_workers=257"], r"num_workers \(257\) must be at least 0 and at most 256"),
        (["global_train_batch_size=10000001"], r"must be at least 1 and at most 10,000,000$"),
        (["model.n_layers=10001"], r"model\.n_layers \(10001\) must be at most 10,000"),
        (["model.expert_hidden=1000001"], r"model\.expert_hidden \(1000001\) must be at most 1,000,000"),
        (
            ["device_train_microbatch_size=99999999999"],
            r"must be an integer number of sequences \(at most 10,000,000\)",
        ),
        (["eval_data.max_batches=99999999999"], r"eval_data\.max_batches \(99999999999\) must be at least 1 and"),
        (["max_duration=" + "9" * 19 + "ba"], r"max_duration \(9+ba\) has more than 18 digits"),
        (
            ["save_interval=" + "9" * 5000 + "tok"],
            r"save_interval \(9{20}\.\.\. \(5,003 characters\)\) has more than 18 digits",
        ),
        (["stall_timeout=99999999d"], r"stall_timeout \(99999999d\) is longer than 100 years"),
        (["time_limit=" + "9" * 5000 + "s"], r"time_limit \(9{20}\.\.\. .* is longer than 100 years"),
        (["optimizer.lr=.inf"], r"optimizer\.lr \(inf\) must be above 0"),
        (["save_folder=gs://b/x"], r"save_folder \(gs://b/x\) must be a folder, or s3://bucket/prefix"),
        (["save_folder=s3://"], r"save_folder \(s3://\) must be a folder, or s3://bucket/prefix"),
        (["time_limit=4"], r"time_limit \(4\) is not a wall-clock time; write it as 90s, 30m, 12h or 2d"),
        (["stall_timeout=0m"], r"stall_timeout \(0m\) is not a wall-clock time"),
        (["max_failed_saves=0"], r"max_failed_saves \(0\) must be at least 1"),
        (["train_data.cache_limit=1gb"], r"cache_limit \(1gb\) would delete shards that have no other copy"),
        (["train_data.cache_limit=lots"], r"cache_limit \(lots\) is not a size; write it as 500mb or 100gb"),
        (["train_data.num_canonical_nodes=3"], r"num_canonical_nodes \(3\) must be at least 1 and divide .*size \(8\)"),
        (["train_data.num_canonical_nodes=0"], r"num_canonical_nodes \(0\) must be at least 1"),
        (
            ["train_data={text: {dataset: x}, num_canonical_nodes: 2}"],
            r"num_canonical_nodes \(2\) needs converted data",
        ),
        (["save_folder=${nope}"], r"nope"),
        (["run_name=${run_name}"], r"run_name"),
        (['save_folder="runs\\0/x"'], r"save_folder \('runs\\x00/x'\) holds a character that is not valid UTF-8"),
        (['sample_prompts=[a, "b\\ud800"]'], r"sample_prompts\.1 \('b\\ud800'\) holds a character"),
        (["tokenizer=a\udcff"], r"tokenizer"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_by_name(path: Path, overrides: list[str], expected: str) -> None:
    assert any(re.search(expected, error) for error in errors(path, *overrides))


def test_a_missing_file_names_the_yamls_beside_it(path: Path) -> None:
    assert "c.yaml" in errors(path.with_name("d.yaml"))[0]


def test_the_written_config_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_the_batch_must_divide_by_the_ranks(path: Path) -> None:
    from moe.config.checks import check_ranks

    assert check_ranks(load_config(path), 2) == []
    assert "global_train_batch_size (8) is not divisible by 3 ranks; use 6" in check_ranks(load_config(path), 3)[0]


def test_replicas_need_fsdp2_and_ranks_enough_to_divide_each_of_them(path: Path) -> None:
    from moe.config.checks import check_ranks

    with pytest.raises(ConfigError, match=r"parallelism.replicas \(2\) needs parallelism.fsdp2: true"):
        load_config(path, ["parallelism.replicas=2"])
    with pytest.raises(ConfigError, match=r"parallelism.replicas \(0\) must be at least 1"):
        load_config(path, ["parallelism.fsdp2=true", "parallelism.replicas=0"])
    two = load_config(path, ["parallelism.fsdp2=true", "parallelism.replicas=2"])
    assert check_ranks(two, 4) == check_ranks(two, 8) == check_ranks(two, 1) == []
    assert check_ranks(two, 2) == ["parallelism.replicas (2) must divide 2 ranks into groups of at least 2; use 1"]
    four = load_config(path, ["parallelism.fsdp2=true", "parallelism.replicas=4", "global_train_batch_size=12"])
    assert check_ranks(four, 6)[0].endswith("; use 1 or 2 or 3")


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "yamls").glob("*.yaml")))
def test_every_yaml_loads_and_explains_itself(name: str) -> None:
    text = (ROOT / "yamls" / name).read_text()
    config = load_config(ROOT / "yamls" / name)
    assert config.autoresume and config.eval_data is not None
    assert text.count("#") >= 10 and yaml.safe_load(text)["run_name"] == config.run_name


@pytest.mark.parametrize(
    ("name", "total"),
    [("500m", 510_551_040), ("1b", 999_542_784), ("1_5b", 1_508_812_288), ("large", 1_508_812_288)],
)
def test_named_sizes_have_the_parameters_they_are_named_after(name: str, total: int) -> None:
    from moe.model.flops import count_parameters, model_shape

    config = load_config(ROOT / "yamls" / f"{name}.yaml")
    assert count_parameters(**model_shape(config.model, 50257)).total == total
    named = {"500m": 5e8, "1b": 1e9, "1_5b": 1.5e9, "large": 1.5e9}[name]
    assert abs(total / named - 1) < 0.03


STREAMS = "train_data={streams: {web: {local: w}, code: {local: c, proportion: 0.2}}}"


def test_a_list_that_is_missing_does_not_hide_other_errors(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["eval_tasks={limit: 0}", "gradient_clip_norm=-1"])
    assert all(key in str(caught.value) for key in ("eval_tasks.names: is missing", "gradient_clip_norm (-1.0)"))
    assert "AnyNode" not in str(caught.value)


def test_streams_of_a_mixture_have_names_of_their_own(path: Path) -> None:
    config = load_config(
        path, [STREAMS, "train_data.streams.code.proportion=0.3", "eval_data={streams: {a: {local: w}}}"]
    )
    assert config.train_data.streams["code"].proportion == 0.3 and config.train_data.streams["web"].split == "train"
    assert config.eval_data is not None and config.eval_data.streams["a"].split == "val"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train_data={}"], r"train_data: has no data; give one of local \(a folder\), streams"),
        ([STREAMS, "train_data.local=x"], r"train_data: has local and streams; give one of"),
        ([STREAMS, "train_data.remote=s3://x"], r"train_data\.remote \(s3://x\) needs train_data\.local"),
        ([STREAMS, "train_data.streams.web.locl=x"], r"web\.locl: unknown key; did you mean .*streams\.web\.local\?"),
        ([STREAMS, "train_data.streams.books.proportion=0.1"], r"train_data\.streams\.books\.local: is missing"),
        ([STREAMS, "train_data.streams.web=5"], r"train_data\.streams\.web: is 5; this is a section, with local,"),
        (["train_data={streams: [a]}"], r"train_data\.streams: is \['a'\]; this is a section, with names of your own"),
        ([STREAMS, "train_data.streams.web.repeat=2"], r"streams\.web\.repeat does not go with the proportion of"),
        ([STREAMS, "train_data.streams.code.choose=2"], r"streams\.code: gives proportion and choose; choose one"),
        ([STREAMS, "train_data.streams.code.proportion=0"], r"streams\.code\.proportion \(0\.0\) must be above 0"),
        ([STREAMS, "train_data.streams.code.proportion=1.5"], r"add up to 1\.5 and leave nothing for web"),
        ([STREAMS, "train_data.streams.code.local=w"], r"streams\.code\.local \(w\) is also that of web"),
        (
            ["train_data={text: {dataset: d, val_fraction: 1}}"],
            r"text\.val_fraction \(1\.0\) must be at least 0 and below",
        ),
        (["train_data={text: {dataset: d, lanes: 0}}"], r"train_data\.text: lanes \(0\) must be at least 1"),
        (["train_data={text: {}}"], r"train_data\.text"),
        (["train_data={text: {dataset: d, lanes: 1025}}"], r"lanes \(1025\) must be at least 1 and at most 1024"),
        (
            [STREAMS, "train_data.streams.code.proportion=1e308"],
            r"proportion \(1e\+308\) must be above 0 and at most 1,",
        ),
        ([STREAMS, "train_data.streams.code.repeat=.inf"], r"repeat \(inf\) must be above 0 and at most 10,000"),
        ([STREAMS, "train_data.streams.code.repeat=20000"], r"repeat \(20000\.0\) must be above 0 and at most 10,000"),
        (
            [STREAMS, "train_data.streams.code.choose=99999999999"],
            r"choose \(99999999999\) must be above 0 and at most",
        ),
        (["eval_data={text: true}"], r"eval_data\.text needs train_data\.text and a val_fraction above 0"),
        (["train_data={streams: {'a/b': {local: w}}}"], r"streams\.a/b: a stream's name must be letters"),
    ],
)
def test_errors_of_a_mixture_are_refused_by_name(path: Path, overrides: list[str], expected: str) -> None:
    assert any(re.search(expected, error) for error in errors(path, *overrides)), errors(path, *overrides)


def test_the_ranks_must_divide_the_lanes_of_text(path: Path) -> None:
    from moe.config.checks import check_ranks

    config = load_config(path, ["train_data={text: {dataset: d, lanes: 4}}", "global_train_batch_size=24"])
    assert check_ranks(config, 2) == []
    assert "train_data.text.lanes (4) is not divisible by 3 ranks; use 6" in check_ranks(config, 3)[0]


FLOATS = [
    "model.rope_theta",
    "model.norm_eps",
    "model.dropout",
    "model.balance_loss",
    "model.router_z_loss",
    "model.z_loss",
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "optimizer.adamw.lr",
    "optimizer.adamw.eps",
    "scheduler.alpha_f",
    "gradient_clip_norm",
]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1"])
@pytest.mark.parametrize("setting", FLOATS)
def test_a_number_that_no_run_can_mean_is_an_error_of_its_setting(path: Path, setting: str, value: str) -> None:
    (error,) = errors(path, f"{setting}={value}")
    assert error.startswith(f"{setting} (") and "at most" in error


def test_what_loads_experts_evenly_has_defaults_that_follow_from_the_rule(path: Path) -> None:
    def found(*overrides: str) -> tuple[float | None, float | None]:
        model = load_config(path, list(overrides)).model
        return model.balance_loss, model.balance_rate

    assert found() == found("model.balance=loss") == (0.01, None)
    assert found("model.balance=quantile") == (0.0, None)
    assert found("model.balance=sign") == (0.0, 0.01), "a run of 40 steps"
    assert found("model.balance=sign", "max_duration=1000ba") == (0.0, 0.001)
    assert found("model.balance=sign", "model.balance_loss=0.1", "model.balance_rate=0.5") == (0.1, 0.5)
    text = to_yaml(load_config(path, ["model.balance=sign"]))
    path.with_name("again.yaml").write_text(text)
    assert to_yaml(load_config(path.with_name("again.yaml"))) == text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.balance=quantile", "model.top_k=4"], "model.balance (quantile) needs model.top_k (4) below"),
        (["model.balance_rate=0.1"], "model.balance_rate (0.1) needs model.balance sign (is loss); remove it"),
        (["model.balance=sign", "model.balance_rate=0"], "model.balance_rate (0.0) must be above 0 and at most 1"),
        (["model.partial_rotary_factor=0.2"], "model.partial_rotary_factor (0.2) of a head's 16 channels makes 3"),
        (["model.partial_rotary_factor=1.5"], "model.partial_rotary_factor (1.5) must be above 0 and at most 1"),
        (["model.routed_scaling_factor=-1"], "model.routed_scaling_factor (-1.0) must be above 0"),
        (["model.balance=bias"], "model.balance: is 'bias'"),
        (["model.scoring_func=relu"], "model.scoring_func: is 'relu'"),
        (["model.first_k_dense_replace=2"], "model.first_k_dense_replace (2) leaves no layer of experts of model.n_"),
        (["model.first_k_dense_replace=-1"], "model.first_k_dense_replace (-1) must be at least 0"),
        (["model.dense_hidden=64"], "model.dense_hidden (64) needs model.first_k_dense_replace above 0; remove it"),
        (["model.first_k_dense_replace=1", "model.dense_hidden=0"], "model.dense_hidden (0) must be at least 1"),
        (["model.qk_norm=layer"], "model.qk_norm (layer) must be head, full or false"),
        (["model.qk_norm=null"], "model.qk_norm: is null; write a value that docs/configuration.md lists"),
    ],
)
def test_errors_of_routing_and_balance_are_refused_by_name(path: Path, overrides: list[str], expected: str) -> None:
    (error,) = errors(path, *overrides)
    assert error.startswith(expected)


def test_qk_norm_keeps_the_word_of_earlier_versions(path: Path) -> None:
    assert [load_config(path, given).model.qk_norm for given in ([], ["model.qk_norm=true"])] == ["head", "head"]
    assert [load_config(path, [f"model.qk_norm={value}"]).model.qk_norm for value in ("full", "false", "off")] == [
        "full",
        False,
        False,
    ]

"""What is typed, in the file or on the command line, is what counts: text, numbers, aliases, tags."""

from pathlib import Path

import pytest

from moe.config import ConfigError, load_config, to_yaml
from tests.tiny import tiny_config, write_config
from tests.unit.config.found import errors


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1\nseed: 2\n")
    assert "'seed' is given twice" in errors(tmp_path / "c.yaml")[0]


@pytest.mark.parametrize("text", ["model: &a {d_model: *a}", "sample_prompts: &a [x, *a]", "seed: " + "[" * 2000])
def test_yaml_that_has_no_end_or_no_value_is_one_error(tmp_path: Path, path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    (found,) = errors(tmp_path / "c.yaml")
    assert found.startswith("is not valid yaml: ") and len(found) < 200
    key, _, value = text.partition(": ")
    write_config(path, tiny_config(tmp_path))
    assert any(error.startswith(f"{key}: ") and "cannot be set: " in error for error in errors(path, f"{key}={value}"))


def test_an_alias_may_stand_twice(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    write_config(tmp_path / "c.yaml", config)
    text = (tmp_path / "c.yaml").read_text() + "sample_prompts: [&a once, *a]\n"
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml").sample_prompts == ["once", "once"]


def test_a_run_name_that_looks_like_a_number_stays_as_it_is_written(path: Path) -> None:
    assert load_config(path, ["run_name=5e-4"]).run_name == "5e-4"


TYPED = ["1.10", "007", "on", "1e5", "0x10", "1_000", "2024-05-01", "2024-02-31", "yes", "12:30:45", ".5", "NaN"]


@pytest.mark.parametrize("text", TYPED)
def test_a_text_setting_is_what_was_typed(path: Path, text: str) -> None:
    """A15: run_name=1.10 went on with run 1.1."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("run_name:", "tokenizer:"))]
    typed = f"run_name: run\ntokenizer: {text}\nsave_folder: {text}\nsample_prompts: [{text}, 'x']\n"
    typed += f"loggers: {{wandb: {{tags: [{text}], project: {text}}}}}\n"
    lines = [line for line in lines if not line.startswith(("save_folder:", "loggers:", "  tensorboard:"))]
    path.write_text("\n".join(lines) + "\n" + typed)
    config = load_config(path, [f"train_data.local={text}", f"eval_data={{local: {text}}}"])
    assert config.tokenizer == config.save_folder == config.train_data.local == text
    assert config.eval_data is not None and config.eval_data.local == text and config.sample_prompts == [text, "x"]
    assert config.loggers.wandb is not None and config.loggers.wandb.project == text
    assert config.loggers.wandb.tags == [text]
    path.with_name("again.yaml").write_text(to_yaml(config))
    assert load_config(path.with_name("again.yaml")) == config


@pytest.mark.parametrize("text", ["1.10", "007", "on", "1e5", "2024-05-01"])
def test_a_run_name_that_yaml_reads_as_something_else_is_that_run(path: Path, text: str) -> None:
    """A15: from the file and from the command line alike."""
    assert load_config(path, [f"run_name={text}"]).run_name == text
    lines = [line for line in path.read_text().splitlines() if not line.startswith("run_name:")]
    path.write_text("\n".join([f"run_name: {text}", *lines]))
    assert load_config(path).run_name == text


def test_streams_named_by_numbers_and_truth_values_keep_their_names(path: Path) -> None:
    """A15: keys of yaml too."""
    streams = "{007: {local: a}, on: {local: b, repeat: 2}, 1.10: {local: 5}}"
    found = errors(path, f"train_data={{streams: {streams}}}")
    assert [error for error in found if "007" in error or "on:" in error] == [] and "streams.1.10" in found[0]
    config = load_config(path, ["train_data={streams: {007: {local: a}, on: {local: 1.0}}}"])
    assert config.train_data.streams["007"].local == "a" and config.train_data.streams["on"].local == "1.0"


def test_null_is_no_text_and_settings_that_are_no_text_are_read_as_before(path: Path) -> None:
    """A15: the other way round."""
    assert "run_name" in errors(path, "run_name=null")[0]
    config = load_config(path, ["seed=007", "optimizer.lr=1e-3", "compile=off", "device_train_microbatch_size=4"])
    assert (config.seed, config.optimizer.lr, config.compile) == (7, 1e-3, False)
    assert config.device_train_microbatch_size == 4 and load_config(path, ["train_data.remote=null"])
    assert "seed: is 1.5" in errors(path, "seed=1.5")[0] or "1.5" in errors(path, "seed=1.5")[0]


def test_aliases_of_aliases_are_refused_at_once(tmp_path: Path) -> None:
    """C8: ten lines that stand for ten thousand million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"not valid yaml: its aliases \(\*name\) make more than 100,000 values"):
        load_config(path)


@pytest.mark.parametrize("typed", ["/data/run #2", "a: b", "@x", "- a", "#1", "0100", "x # y"])
def test_text_on_the_command_line_is_all_that_was_typed(path: Path, typed: str) -> None:
    """All from ' #' on was left out as a yaml comment."""
    assert load_config(path, [f"load_path={typed}"]).load_path == typed
    assert load_config(path, [f'load_path="{typed}"']).load_path == typed
    assert load_config(path, ["load_path=null"]).load_path is None


@pytest.mark.parametrize("typed", ["0100", "1:00", "0x40", "0b11", "64 # or 128", "???"])
def test_a_number_that_yaml_reads_otherwise_is_an_error(path: Path, typed: str) -> None:
    """0100 was 64, 1:00 was 60, ??? was the default."""
    for key in ("global_train_batch_size", "seed"):
        (found,) = errors(path, f"{key}={typed}")
        assert found.startswith(f"{key}: ") and repr(typed) in found
    (found,) = errors(path, "optimizer.betas=[0.9, 1:00.5]")
    assert found.startswith("optimizer.betas: is '1:00.5'")
    assert load_config(path, ["seed=1_000", "optimizer.lr=1e-3", "max_seq_len=+64"]).seed == 1000


@pytest.mark.parametrize("value", ["!!bool abc", "!!timestamp abc", '!!int ""', '!!float ""'])
def test_a_tag_that_its_value_does_not_fit_is_one_error(path: Path, value: str) -> None:
    """A KeyError or AttributeError of yaml's own came through."""
    path.write_text(path.read_text() + f"seed: {value}\n")
    (found,) = errors(path)
    assert "is not of type" in found or "seed: is ''" in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("save_folder=s3:/bucket/x", "save_folder (s3:/bucket/x) must be a folder, or s3://bucket/prefix"),
        ("save_folder=gs:/bucket/x", "save_folder (gs:/bucket/x) must be a folder, or s3://bucket/prefix"),
        ("sample_prompts=['???']", "sample_prompts: '???' stands for no value"),
        ("callbacks=[{class: a.B, x: [1, '???']}]", "callbacks: '???' stands for no value"),
        ("load_path=", "load_path: '' cannot be set: it is empty; write load_path=null for none"),
        ("optimizer.adamw.betas=[a,b]", "optimizer.adamw.betas: is ['a', 'b']; write a list of 2 numbers"),
    ],
)
def test_what_cannot_be_meant_is_one_error(path: Path, override: str, expected: str) -> None:
    (error,) = errors(path, override)
    assert error.startswith(expected)


@pytest.mark.parametrize("stream", ["{proportion: 1}", "{local: x, proportion: 1}"])
def test_a_dot_in_a_streams_name_is_one_error(path: Path, stream: str) -> None:
    (error,) = errors(path, "train_data.local=null", f"train_data.streams={{a.b: {stream}}}")
    assert error == "train_data.streams.a.b: a name must be letters, digits, '_' and '-'"


@pytest.mark.parametrize("number", ["1e-5", "1e17", "25e-8", "3e4"])
def test_the_number_that_an_argument_is_to_be_written_as_is_accepted(path: Path, number: str) -> None:
    (error,) = errors(path, f"callbacks=[{{class: a.B, eps: {number}}}]")
    better = error.partition("write the number as ")[2]
    (callback,) = load_config(path, [f"callbacks=[{{class: a.B, eps: {better}}}]"]).callbacks
    assert callback["eps"] == float(number)


def test_text_that_looks_like_a_settings_name_is_read_back_as_it_was(path: Path) -> None:
    config = load_config(path, [r"sample_prompts=['cost \${x} now', '{a} $ {b}']"])
    assert config.sample_prompts[0] == "cost ${x} now"
    path.with_name("again.yaml").write_text(to_yaml(config))
    assert load_config(path.with_name("again.yaml")) == config

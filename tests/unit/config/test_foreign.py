"""Settings under the names of other trainers."""

from pathlib import Path

import pytest

from moe.config import ConfigError, load_config
from moe.config.foreign import NAMES, TABLE
from moe.config.table import rows
from tests.tiny import tiny_config, write_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_config(tmp_path / "c.yaml", tiny_config(tmp_path))


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("lr=1e-3", "lr: unknown key; did you mean optimizer.lr?"),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate: unknown key; did you mean optimizer.lr?"),
        ("training.learning_rate=1e-3", "training: unknown key; did you mean optimizer.lr?"),
        ("model.hidden_size=64", "model.hidden_size: unknown key; did you mean model.d_model?"),
        ("num_layers=2", "num_layers: unknown key; did you mean model.n_layers?"),
        ("model.num_experts=8", "model.num_experts: unknown key; did you mean model.n_experts?"),
        ("batch-size=8", "batch-size: unknown key; did you mean global_train_batch_size? (in sequences)"),
        ("warmup_steps=8", "warmup_steps: unknown key; did you mean scheduler.t_warmup? (e.g. 100ba)"),
        ("output_dir=x", "output_dir: unknown key; did you mean save_folder?"),
        ("max_steps=8", "max_steps: unknown key; did you mean max_duration? (in tokens (10000000000tok) or steps"),
        ("model.weight_decay=0.1", "model.weight_decay: unknown key; did you mean optimizer.weight_decay?"),
        ("training.local_batch_size=8", "training: unknown key; did you mean device_train_microbatch_size?"),
        (
            "model.load_balance_coeff=1e-3",
            "model.load_balance_coeff: unknown key; did you mean model.balance_rate? (with",
        ),
        # a misspelt name of our own is still found by its letters
        ("max_duratoin=8ba", "max_duratoin: unknown key; did you mean max_duration?"),
        ("model.top_kk=2", "model.top_kk: unknown key; did you mean model.top_k?"),
    ],
)
def test_the_names_of_other_trainers_point_to_ours(path: Path, typed: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(path, [typed])
    (reason,) = error.value.errors
    assert reason.startswith(told)


def test_every_hint_names_a_setting_there_is_for_a_name_there_is_not() -> None:
    ours = {row[0] for row in rows()}
    assert {key for key, _ in NAMES.values()} <= ours
    assert not NAMES.keys() & {key for key in ours if "." not in key}


def test_the_page_for_those_who_come_from_elsewhere_has_every_name() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "coming-from.md").read_text()
    rows = page.partition("<!-- names: ")[2].splitlines()[3:]
    shown = [row.strip("| ").split(" | ") for row in rows]
    assert shown == [
        [", ".join(f"`{name}`" for name in names.split()), f"`{ours}`" + f"; {note}" * bool(note)]
        for ours, note, names in TABLE
    ]

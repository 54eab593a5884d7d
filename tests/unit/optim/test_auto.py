"""`auto`: numbers by the rule in a new run, and those that a run has already in one that resumes."""

from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.config import Config, ConfigError, load_config
from moe.config.steps import Steps
from moe.optim.auto import describe, resolve
from moe.optim.rule import embedding_rate, learning_rate, warmup_steps, weight_decay
from tests.tiny import tiny_config, write_config

LONG = "max_duration=6000ba"  # of 8 x 32 tokens
SIZE = {"d_model": 32, "tokens": 6000 * 256, "batch": 256}
ALL = [
    "optimizer.lr=auto",
    "optimizer.adamw.lr=auto",
    "optimizer.weight_decay=auto",
    "optimizer.adamw.embedding_lr=auto",
    "scheduler.t_warmup=auto",
]


@pytest.fixture
def load(tmp_path: Path):
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))

    def load(*overrides: str) -> Config:
        return load_config(path, [LONG, "eval_data=null", *overrides])

    return load


def test_every_auto_becomes_the_rules_number_that_is_reported(load) -> None:
    config, chosen = resolve(load(*ALL))
    lr = learning_rate(**SIZE)
    assert config.optimizer.lr == config.optimizer.adamw.lr == pytest.approx(lr, rel=5e-3)
    assert config.optimizer.weight_decay == pytest.approx(weight_decay(lr, steps=6000), rel=5e-3)
    assert config.scheduler.t_warmup == f"{warmup_steps(6000):.0f}ba"
    assert config.optimizer.adamw.embedding_lr is None, "the embedding is the head too"
    assert [choice.key for choice in chosen] == [override.partition("=")[0] for override in ALL]
    text = "\n".join(describe(chosen, Steps.of(config), d_model=32, flops=1e13))
    assert f"optimizer.lr {config.optimizer.lr:g}," in text and "d_model 32, 1.54M tokens, 256 a step" in text
    assert "outside of what was measured here: d_model 32 (" in text and "Moonlight's fit to 1e+13 FLOPs" in text


def test_an_embedding_of_its_own_gets_a_rate_of_its_own(load) -> None:
    wide = ["model.d_model=512", "model.n_heads=8", "model.tie_embeddings=false"]
    optimizer = resolve(load(*ALL, *wide))[0].optimizer
    assert optimizer.adamw.embedding_lr == pytest.approx(
        embedding_rate(float(optimizer.lr), d_model=512, tied=False), rel=5e-3
    )
    assert optimizer.adamw.embedding_lr > 2 * float(optimizer.lr)


def test_adamw_alone_has_its_own_rate_and_warmup(load) -> None:
    config, _ = resolve(load("optimizer.name=adamw", "optimizer.lr=auto", "scheduler.t_warmup=auto"))
    assert config.optimizer.lr == pytest.approx(learning_rate(**SIZE, optimizer="adamw"), rel=5e-3)
    assert config.scheduler.t_warmup == "400ba"


def test_a_rate_set_by_hand_stays_and_the_decay_is_that_of_it(load) -> None:
    config, chosen = resolve(load("optimizer.lr=0.02", "optimizer.weight_decay=auto"))
    assert config.optimizer.lr == 0.02 and [choice.key for choice in chosen] == ["optimizer.weight_decay"]
    assert config.optimizer.weight_decay == pytest.approx(max(0.05, 1 / (0.2 * 0.02 * 6000)), rel=5e-3)


def test_under_adamw_alone_the_decay_follows_the_rate_that_trains(load) -> None:
    """optimizer.adamw.lr, where it is set: optimizer.lr trains nothing then."""
    words = ["optimizer.name=adamw", "optimizer.lr=0.0001", "optimizer.adamw.lr=0.01", "optimizer.weight_decay=auto"]
    config, _ = resolve(load(*words))
    assert config.optimizer.weight_decay == pytest.approx(weight_decay(0.01, steps=6000), rel=5e-3)
    begun = {"name": "adamw", "lr": 0.0001, "weight_decay": 0.2, "adamw": {"lr": 0.01}}
    kept = {"optimizer": begun, "scheduler": {"t_warmup": "77ba"}}
    assert resolve(load(*words), kept)[0].optimizer.weight_decay == 0.2
    unused, another = (
        resolve(load(*words, "optimizer.lr=0.5"), kept),
        resolve(load(*words, "optimizer.adamw.lr=1"), kept),
    )
    assert unused[0].optimizer.weight_decay == 0.2 != another[0].optimizer.weight_decay


def test_without_auto_nothing_changes(load) -> None:
    config = load()
    assert resolve(config) == (config, []) and describe([], Steps.of(config), d_model=32, flops=1.0) == []


def test_a_run_that_resumes_keeps_its_numbers_and_says_what_the_rule_gives_now(load) -> None:
    kept = {
        "optimizer": {"lr": 0.0123, "weight_decay": 0.2, "adamw": {"lr": 0.0123}},
        "scheduler": {"t_warmup": "77ba"},
    }
    config, chosen = resolve(load(*ALL), kept)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.scheduler.t_warmup) == (0.0123, 0.2, "77ba")
    assert config.optimizer.adamw.embedding_lr is None, "a manifest from before the key"
    by_rule = resolve(load(*ALL))[0].optimizer.lr
    told = describe(chosen, Steps.of(config), d_model=32, flops=1e13)[0]
    assert f"optimizer.lr 0.0123 (kept; the rule gives {by_rule:g} now, set it to take it)" in told


def test_what_follows_a_rate_that_is_set_by_hand_in_mid_run_follows_it(load) -> None:
    begun = {"lr": 0.0123, "weight_decay": 0.2, "adamw": {"lr": 0.0123, "embedding_lr": None}}
    kept = {"optimizer": begun, "scheduler": {"t_warmup": "77ba"}}
    config, chosen = resolve(load(*ALL, "optimizer.lr=0.0001"), kept)
    assert config.optimizer.adamw.lr == 0.0001 and config.optimizer.weight_decay != 0.2
    assert config.scheduler.t_warmup == "77ba"
    assert not any("set it to take it" in str(choice) for choice in chosen if choice.by_rule is None)


def test_a_warmup_that_leaves_no_room_is_refused_with_its_number(load) -> None:
    wsd = ["scheduler.name=wsd", "scheduler.t_decay=5950ba", "scheduler.t_warmup=auto"]
    with pytest.raises(InputError, match=r"scheduler\.t_warmup 100ba\) does not fit.*\n.*together exceed max_duration"):
        resolve(load(*wsd))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("optimizer.lr=automatic", "optimizer.lr: is 'automatic'; write a number, or auto"),
        ("optimizer.weight_decay=true", "optimizer.weight_decay: is 'true'; write a number, or auto"),
        ("optimizer.lr=0x1", "optimizer.lr: is '0x1', which yaml reads as 1; write the number in plain digits"),
        ("optimizer.lr=-1", "optimizer.lr (-1.0) must be above 0"),
        ("optimizer.adamw.embedding_lr=0.1", "needs model.tie_embeddings false"),
        ("scheduler.t_warmup=always", "scheduler.t_warmup (always)"),
    ],
)
def test_what_is_neither_a_number_nor_auto_is_one_clear_error(load, override: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(override)
    assert len(error.value.errors) == 1 and text in error.value.errors[0]


def test_auto_is_no_rule_for_updates_of_another_scale(load) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.lr \(auto\) is a rule for optimizer.adjust_lr_fn match_rms"):
        load("optimizer.lr=auto", "optimizer.adjust_lr_fn=original")


def test_under_original_adamws_auto_is_the_rules_rate_not_that_of_unscaled_updates(load) -> None:
    words = ["optimizer.adjust_lr_fn=original", "optimizer.lr=0.02", "optimizer.adamw.lr=auto"]
    assert resolve(load(*words))[0].optimizer.adamw.lr == pytest.approx(learning_rate(**SIZE), rel=5e-3)
    kept = {"optimizer": {"name": "muon", "lr": 0.02, "adamw": {"lr": 0.02}}, "scheduler": {"t_warmup": "77ba"}}
    for lr in ("0.02", "0.01"):
        config, (choice,) = resolve(load(*words, f"optimizer.lr={lr}"), kept)
        assert config.optimizer.adamw.lr == 0.02, "a run that had optimizer.lr goes on with it"
        assert "kept; the rule gives 0.00633 now" in str(choice)


@pytest.mark.parametrize(("typed", "value"), [("5e-4", 5e-4), ("1", 1.0), ("auto", "auto"), ('"auto"', "auto")])
def test_numbers_are_read_as_before(load, typed: str, value: float | str) -> None:
    read = load(f"optimizer.lr={typed}").optimizer.lr
    assert read == value and type(read) is type(value)


def test_a_checkpoint_without_an_optimizer_has_no_numbers_to_keep(load) -> None:
    """That of an import, whose manifest has the model alone."""
    config = load(*ALL)
    assert resolve(config, kept={"model": {}, "tokenizer": "x"}) == resolve(config)

"""The line `router` of the checklist, and what a start says: a router that the loss cannot teach."""

from pathlib import Path

import pytest

from moe.config import Config, load_config
from moe.model.flops import experts_in_words
from moe.plan.checks.result import Result
from moe.plan.checks.settings import check_settings
from tests.tiny import tiny_config, write_config


@pytest.fixture
def load(tmp_path: Path):
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))

    def load(*overrides: str) -> Config:
        return load_config(path, ["eval_data=null", *overrides])

    return load


def told(config: Config) -> list[Result]:
    return [line for line in check_settings(config, vocab_size=97, world_size=1) if line.name == "router"]


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_one_expert_a_token_whose_weight_is_always_1_is_told(load, scoring_func: str) -> None:
    """Its config is no error: runs that have it go on."""
    config = load("model.top_k=1", f"model.scoring_func={scoring_func}")
    (line,) = told(config)
    assert line.state == "warn" and line.text.startswith("model.top_k (1) with model.norm_topk_prob (true): ")
    assert "the loss teaches the router nothing; set model.norm_topk_prob=false in a new run" in line.text
    assert experts_in_words(config.model) == "4 experts, top 1 (its weight is always 1: the loss teaches no router)"


@pytest.mark.parametrize("words", ["top_k=2", "top_k=1 norm_topk_prob=false", "top_k=1 n_experts=1"])
def test_a_router_that_learns_and_a_dense_model_are_not(load, words: str) -> None:
    config = load(*(f"model.{word}" for word in words.split()))
    assert told(config) == [] and "always" not in experts_in_words(config.model)

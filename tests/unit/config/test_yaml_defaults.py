"""The numbers in the yamls' comments are those the yamls' own settings give."""

import re
from pathlib import Path

import pytest

from moe.config import Config, load_config
from moe.model.flops import flops_per_token

ABOVE_THE_FITS = ("demo", "own_text", "quick")  # a few hundred steps
YAMLS = sorted((Path(__file__).resolve().parents[3] / "yamls").glob("*.yaml"))
MOE_SHAPE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "n_experts", "top_k", "expert_hidden")
COMPUTE = re.compile(r"C = ([\d.]+) GFLOPs a token x ([\d.]+) (million|billion) tokens = ([\d.e]+) FLOPs")
BATCH = re.compile(r"# (\d+) x (\d+) = ([\d,]+) tokens a step(?:, ([\d,]+) steps)?")


def number(text: str) -> float:
    return float(text.replace(",", ""))


def compute(config: Config) -> tuple[float, float, float]:
    """FLOPs a token, tokens, and their product, the C of Moonlight's fits."""
    vocab_size = 8192 if config.run_name in ("demo", "own-text") else 50257
    shape = {name: getattr(config.model, name) for name in MOE_SHAPE}
    flops = flops_per_token(vocab_size=vocab_size, seq_len=config.max_seq_len, **shape)
    tokens = float(config.max_duration.removesuffix("tok"))
    return flops, tokens, flops * tokens


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_the_fits_in_the_comment_are_recomputed_from_the_settings(path: Path) -> None:
    text = path.read_text().replace("\n# ", " ")
    flops, tokens, c = compute(load_config(path))
    told = COMPUTE.search(text)
    assert told is not None
    assert number(told[1]) * 1e9 == pytest.approx(flops, rel=5e-3)
    assert number(told[2]) * {"million": 1e6, "billion": 1e9}[told[3]] == tokens
    assert number(told[4]) == pytest.approx(c, rel=5e-3)
    rate, batch = re.search(r"C\^-0.0575 = ([\d.e-]+)", text), re.search(r"C\^0.414 = ([\d,]+) tokens", text)
    assert rate is not None and number(rate[1]) == pytest.approx(0.01273 * c**-0.0575, rel=5e-3)
    assert batch is not None and number(batch[1]) == pytest.approx(0.00652 * c**0.414, rel=2e-2)


@pytest.mark.parametrize("path", [p for p in YAMLS if p.stem not in ABOVE_THE_FITS], ids=lambda path: path.stem)
def test_a_yaml_that_says_so_follows_the_fits(path: Path) -> None:
    config = load_config(path)
    c = compute(config)[2]
    assert config.optimizer.name == "muon"
    assert config.optimizer.lr == pytest.approx(0.01273 * c**-0.0575, rel=0.04)
    assert config.global_train_batch_size * config.max_seq_len == pytest.approx(0.00652 * c**0.414, rel=0.2)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_batch_and_warmup_are_what_their_comments_say(path: Path) -> None:
    text, config = path.read_text(), load_config(path)
    tokens_per_step, total = config.global_train_batch_size * config.max_seq_len, compute(config)[1]
    batch = BATCH.search(text)
    assert batch is not None
    assert (number(batch[1]), number(batch[2])) == (config.global_train_batch_size, config.max_seq_len)
    assert number(batch[3]) == tokens_per_step
    assert batch[4] is None or number(batch[4]) == -(-total // tokens_per_step)
    warmup = re.search(r"t_warmup: (\d+)tok # (\d+)% of the run, (\d+) steps", text)
    assert warmup is not None
    assert number(warmup[1]) == total * number(warmup[2]) / 100
    assert number(warmup[3]) == round(number(warmup[1]) / tokens_per_step)

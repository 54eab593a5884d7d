"""The numbers in the yamls' comments are those the yamls' own settings give."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from moe.config import Config, load_config, parse_time
from moe.model.families.table import family_of
from moe.model.flops import count_parameters, flops_per_token, model_shape
from moe.optim.auto import resolve

ABOVE_THE_FITS = ("demo", "own_text", "quick")  # a few hundred steps
YAMLS = sorted((Path(__file__).resolve().parents[3] / "yamls").glob("*.yaml"))
COMPUTE = re.compile(r"C = ([\d.]+) GFLOPs a token x ([\d.]+) (million|billion) tokens = ([\d.e]+) FLOPs")
BATCH = re.compile(r"# (\d+) x (\d+) = ([\d,]+) tokens a step(?:, ([\d,]+) steps)?")


def number(text: str) -> float:
    return float(text.replace(",", ""))


def compute(config: Config) -> tuple[float, float, float]:
    """FLOPs a token, tokens, and their product, the C of Moonlight's fits."""
    vocab_size = {"demo": 8192, "own-text": 8192, "moe-30b-a3b": 151_936}.get(config.run_name, 50257)
    flops = flops_per_token(**model_shape(config.model, vocab_size), seq_len=config.max_seq_len)
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
    text, (config, _) = path.read_text(), resolve(load_config(path))
    tokens_per_step, total = config.global_train_batch_size * config.max_seq_len, compute(config)[1]
    batch = BATCH.search(text)
    assert batch is not None
    assert (number(batch[1]), number(batch[2])) == (config.global_train_batch_size, config.max_seq_len)
    assert number(batch[3]) == tokens_per_step
    assert batch[4] is None or number(batch[4]) == -(-total // tokens_per_step)
    warmup = re.search(r"t_warmup: (?:\d+tok|auto) # (\d+)% of the run, (\d+) steps", text)
    assert warmup is not None
    tokens = parse_time(config.scheduler.t_warmup).to_tokens(tokens_per_step)
    assert tokens == pytest.approx(total * number(warmup[1]) / 100, abs=tokens_per_step / 2)
    assert number(warmup[2]) == round(tokens / tokens_per_step)
    told = re.search(r"lr: auto # .*batch: ([\d.]+?)\.?(?: |$)", text, re.MULTILINE)
    assert (told is not None) == (path.stem in ABOVE_THE_FITS)
    assert told is None or number(told[1]) == pytest.approx(config.optimizer.lr, rel=0.01)


@pytest.mark.parametrize("name", ["500m_fine", "500m_fine_shared"])
def test_a_fine_yaml_is_500m_in_smaller_experts_and_says_its_size(name: str) -> None:
    folder = YAMLS[0].parent
    plain, fine = (load_config(folder / f"{stem}.yaml") for stem in ("500m", name))
    sizes = [count_parameters(**model_shape(config.model, 50257)) for config in (plain, fine)]
    assert sizes[1].active == pytest.approx(sizes[0].active, rel=0.02)
    text = (folder / f"{name}.yaml").read_text()
    told = re.search(r"^# (\d+)M parameters \((\d+)M active\) in (\d+) fine experts, (\d+) a token", text)
    assert told is not None
    assert [round(sizes[1].total / 1e6), round(sizes[1].active / 1e6)] == [int(told[1]), int(told[2])]
    assert [fine.model.n_experts, fine.model.top_k] == [int(told[3]), int(told[4])] == [64, 8]
    times = re.search(r"([\d.]+) times as many in total", text.replace("\n# ", " "))
    assert times is not None and number(times[1]) == round(sizes[1].total / sizes[0].total, 1)
    exports = re.search(r"Exports as (\w+)\.", text)
    assert exports is not None and family_of(asdict(fine.model)).architecture == f"{exports[1]}ForCausalLM"
    same = (
        "max_duration",
        "global_train_batch_size",
        "optimizer",
        "scheduler",
        "max_seq_len",
        "train_data",
        "eval_data",
    )
    assert all(getattr(plain, key) == getattr(fine, key) for key in same)

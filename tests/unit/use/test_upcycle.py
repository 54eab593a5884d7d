"""A dense folder becomes a Mixture of Experts with the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe.cli.main import main
from moe.common.errors import InputError, RunFailed
from moe.use.export import from_hf
from moe.use.export.from_hf import import_folder
from moe.use.export.to_hf import export
from moe.use.export.upcycle import Recipe, parse_recipe
from moe.use.inference import find_checkpoint, load_model


def quiet(line: str) -> None:
    pass


@pytest.fixture
def dense(make_run: Callable, tmp_path: Path) -> Path:
    """A folder of Qwen3 with 48 hidden units."""
    run = make_run(name="dense", n_experts=1, top_k=1, expert_hidden=48)
    export(str(run), out=tmp_path / "hf", say=quiet)
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("text", "experts", "family"),
    [
        ("copies=3,pieces=4", (12, 4, 12, 0), "Qwen3MoeForCausalLM"),
        ("active=2, copies=3 ,pieces=2", (6, 4, 24, 0), "Qwen3MoeForCausalLM"),
        ("copies=2,pieces=1,active=2", (2, 2, 48, 0), "Qwen3MoeForCausalLM"),
        ("copies=3,pieces=2,shared=1", (6, 2, 16, 1), "Glm4MoeForCausalLM"),
    ],
)
def test_logits_are_those_of_the_dense_model_whatever_the_router_chooses(
    dense: Path, tmp_path: Path, text: str, experts: tuple[int, ...], family: str
) -> None:
    said: list[str] = []
    recipe = parse_recipe(text)
    import_folder(str(dense), out=tmp_path / "up", recipe=recipe, say=said.append)
    assert any(line.startswith("verified: max logit difference") for line in said)
    checkpoint = find_checkpoint(str(tmp_path / "up"))
    settings = checkpoint.manifest["config"]["model"]
    told = (settings["n_experts"], settings["top_k"], settings["expert_hidden"], settings.get("n_shared_experts", 0))
    assert told == experts
    before, model = load_model(find_checkpoint(str(tmp_path / "dense"))), load_model(checkpoint)
    tokens = torch.randint(before.embed.weight.shape[0], (2, 40), generator=torch.Generator().manual_seed(5))
    chosen = []
    with torch.no_grad():
        for seed in range(3):
            found = model(tokens)
            torch.testing.assert_close(found, before(tokens), atol=2e-5, rtol=1e-5)
            chosen.append(model(tokens, tokens).routers.counts_E)
            rows = torch.randn(recipe.copies, 32, generator=torch.Generator().manual_seed(seed))
            for router in model.routers:
                router.weight.copy_(rows.repeat_interleave(recipe.pieces, 0))
    if recipe.active < recipe.copies:
        assert not torch.equal(chosen[0], chosen[1])
    parts = model.train()(tokens, tokens)
    parts.loss.backward()
    assert all(router.weight.grad.abs().max() > 0 for router in model.routers)
    export(str(tmp_path / "up"), out=tmp_path / "again", say=quiet)
    assert family in (tmp_path / "again" / "config.json").read_text()


def test_what_would_compute_something_else_is_not_kept(dense: Path, tmp_path: Path, monkeypatch) -> None:
    plain = from_hf.Upcycled

    def unscaled(*args):
        made = plain(*args)
        return {name: weight / 2 if name.endswith("moe.w2") else weight for name, weight in made.items()}

    monkeypatch.setattr(from_hf, "Upcycled", unscaled)
    with pytest.raises(RunFailed, match="differ from ours"):
        import_folder(str(dense), out=tmp_path / "up", recipe=Recipe(copies=2, pieces=2), say=quiet)
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("copies=8,pieces=1", "make top_k 1, whose weight is always 1"),
        ("copies=8", "pieces missing"),
        ("", "'' is none of copies=NUMBER"),
        ("copies=8,pieces=4,noise=1", "'noise=1' is none of"),
        ("copies=8,pieces=4,copies=2", "copies is given twice"),
        ("copies=8,pieces=-4", "'pieces=-4' is none of"),
        ("copies=0,pieces=4", r"copies \(0\) must be at least 1"),
        ("copies=1,pieces=4", r"copies \(1\) must be at least 2"),
        ("copies=2,pieces=4,active=3", r"active \(3\) must be at most copies \(2\)"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_by_name(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_recipe(text)


def test_a_recipe_that_does_not_fit_the_model_is_refused_and_nothing_is_left(
    dense: Path, make_run: Callable, tmp_path: Path, capsys
) -> None:
    export(str(make_run()), out=tmp_path / "moe", say=quiet)
    command = ["export", "--out", str(tmp_path / "up"), "--from-hf"]
    for source, recipe, told in (
        (dense, "copies=2,pieces=5", r"pieces + shared (5) must divide intermediate_size (48)"),
        (tmp_path / "moe", "copies=2,pieces=2", "has 4 experts already; give a dense model"),
    ):
        assert main([*command, str(source), "--upcycle", recipe]) == 2
        assert told in capsys.readouterr().err
    assert (
        main(["export", str(tmp_path / "dense"), "--out", str(tmp_path / "up"), "--upcycle", "copies=2,pieces=2"]) == 2
    )
    assert "--from-hf" in capsys.readouterr().err
    assert not (tmp_path / "up").exists()

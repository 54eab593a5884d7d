"""Runs the whole trainer on a mixture of two folders: what it prints, logs, refuses, and how it goes on."""

import json
from pathlib import Path

import pytest
import torch

from moe.cli.train import main
from moe.data.write.convert import convert
from moe.data.write.request import Request
from tests.tiny import tiny_config, write_config, write_text
from tests.unit.train.runs import rows, weights

SHORT = ["scheduler.name=constant_with_warmup", "scheduler.t_warmup=2ba", "save_interval=100ba", "eval_interval=100ba"]


def make_folder(tiny: Path, folder: Path, *, documents: int, seed: int, seq_len: int = 32) -> Path:
    text = write_text(folder.with_suffix(".jsonl"), documents=documents, seed=seed)
    convert(
        Request(
            dataset=(str(text),),
            config=None,
            split="train",
            revision=None,
            text_column="text",
            tokenizer=str(tiny / "tokenizer"),
            seq_len=seq_len,
            out=folder,
            val_fraction=0.2,
            seed=17,
            max_documents=None,
            max_tokens=None,
            workers=1,
            encoder="transformers",
            overwrite=False,
            skip_bad_files=False,
        )
    )
    return folder


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("mixture")
    sizes = {"web": (40, 1), "code": (15, 2)}
    return {
        name: str(make_folder(tiny, root / name, documents=documents, seed=seed))
        for name, (documents, seed) in sizes.items()
    }


def mixture(tiny: Path, folders: dict[str, str], **weights: dict) -> dict:
    streams = {name: {"local": folder, **weights.get(name, {})} for name, folder in folders.items()}
    evaluated = {name: {"local": folder} for name, folder in folders.items()}
    return tiny_config(tiny, train_data={"streams": streams}, eval_data={"streams": evaluated, "max_batches": 1})


def run(tmp_path: Path, config: dict, name: str, *overrides: str) -> tuple[int, Path]:
    path = write_config(tmp_path / f"{name}.yaml", config)
    return main([str(path), f"save_folder={tmp_path / name}", *SHORT, *overrides]), tmp_path / name


def test_a_mixture_trains_prints_its_shares_and_evaluates_each_stream(tiny, tmp_path, folders, capsys) -> None:
    config = mixture(tiny, folders, code={"proportion": 0.5})
    code, folder = run(tmp_path, config, "a", "max_duration=4ba", "eval_interval=2ba")
    out = capsys.readouterr().out
    assert code == 0 and "2 streams, " in out and "web for evaluation" in out
    assert "code: 50.0% of an epoch" in out and "web: 50.0% of an epoch" in out
    for name in folders:
        assert sorted(rows(folder, f"metrics/eval/{name}/loss")) == [0, 2, 4]
        assert f"eval/{name} at step 4: loss" in out
    assert rows(folder, "metrics/eval/code/loss")[4] != rows(folder, "metrics/eval/web/loss")[4]


def test_a_mixture_stopped_in_an_epoch_or_at_its_end_goes_on_with_the_same_losses(tiny, tmp_path, folders) -> None:
    config = mixture(tiny, folders, code={"proportion": 0.4})
    samples = sum(json.loads(Path(folder, "meta.json").read_text())["samples"]["train"] for folder in folders.values())
    epoch = samples // 8
    steps = epoch + 6
    _, whole = run(tmp_path, config, "whole", f"max_duration={steps}ba")
    for stop in (5, epoch, epoch + 2):
        run(tmp_path, config, f"cut-{stop}", f"max_duration={stop}ba")
        code, cut = run(tmp_path, config, f"cut-{stop}", f"max_duration={steps}ba")
        assert code == 0 and rows(cut, "train/loss") == rows(whole, "train/loss")
        assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(cut).items())


def test_a_changed_mixture_is_refused_with_both_values(tiny, tmp_path, folders, capsys) -> None:
    run(tmp_path, mixture(tiny, folders, code={"proportion": 0.4}), "run", "max_duration=3ba")
    capsys.readouterr()
    code, _ = run(tmp_path, mixture(tiny, folders, code={"proportion": 0.5}), "run", "max_duration=5ba")
    told = capsys.readouterr().err
    assert code == 2 and "proportion 0.4" in told and "proportion 0.5" in told
    code, _ = run(tmp_path, mixture(tiny, {"web": folders["web"]}), "run", "max_duration=5ba")
    assert code == 2 and "train_data: the streams differ" in capsys.readouterr().err


def test_every_stream_is_held_against_the_config(tiny, tmp_path, folders, capsys) -> None:
    other = make_folder(tiny, tmp_path / "other", documents=15, seed=3, seq_len=16)
    code, _ = run(tmp_path, mixture(tiny, {**folders, "other": str(other)}), "run", "max_duration=5ba")
    told = capsys.readouterr().err
    assert code == 2 and f"not the sequence length of train_data.streams.other.local ({other}), which is 16" in told
    config = mixture(tiny, folders)
    config["eval_data"]["streams"]["code"]["local"] = str(other)
    code, _ = run(tmp_path, config, "run", "max_duration=5ba")
    assert code == 2 and "eval_data.streams.code.local" in capsys.readouterr().err
    shard = next(Path(other, "train").glob("shard.*.mds"))
    changed = bytearray(shard.read_bytes())
    changed[-1] ^= 1
    shard.write_bytes(changed)
    (Path(other) / "meta.json").write_text(
        (Path(other) / "meta.json").read_text().replace('"seq_len": 16', '"seq_len": 32')
    )
    code, _ = run(
        tmp_path, mixture(tiny, {**folders, "other": str(other)}), "run", "max_duration=5ba", "train_data.verify=full"
    )
    assert code == 2 and f"{shard}: its bytes changed" in capsys.readouterr().err


def test_an_evaluation_interrupted_between_two_streams_is_made_up_for(tiny, tmp_path, folders, monkeypatch) -> None:
    from moe.train.composer_model import TokenLoss

    config = mixture(tiny, folders)
    plain, made = TokenLoss.compute, []

    def dies(self):
        made.append(None)
        if len(made) == 3:  # two metrics of the first stream are there
            raise KeyboardInterrupt
        return plain(self)

    monkeypatch.setattr(TokenLoss, "compute", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, "run", "max_duration=4ba", "eval_first=false", "eval_interval=4ba")
    assert rows(tmp_path / "run", "metrics/eval/code/loss") and not rows(tmp_path / "run", "metrics/eval/web/loss")
    monkeypatch.setattr(TokenLoss, "compute", plain)
    code, folder = run(tmp_path, config, "run", "max_duration=4ba", "eval_first=false", "eval_interval=4ba")
    assert code == 0
    for name in folders:
        assert sorted(rows(folder, f"metrics/eval/{name}/loss")) == [4]  # once: what was there is not there twice

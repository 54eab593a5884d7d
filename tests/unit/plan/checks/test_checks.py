"""The checklist with `--fast`, and errors planted one at a time: the line it belongs to tells each, with its fix."""

import dataclasses
import json
import shutil
import socket
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

import moe.common.s3
from moe.cli.main import main
from tests.tiny import tiny_config, write_config, write_run, write_text, write_tokenizer

Found = dict[str, tuple[str, str]]
Check = Callable[..., tuple[int, Found]]


@pytest.fixture
def check(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> Check:
    """Runs `moe check --fast` on the tiny dataset; gives the exit code and (state, text) by name."""
    monkeypatch.delenv("MASTER_PORT", raising=False)
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))

    def run(*overrides: str) -> tuple[int, Found]:
        code = main(["check", str(path), f"save_folder={tmp_path / 'run'}", *overrides, "--fast", "--json"])
        results = json.loads(capsys.readouterr().out)["results"]
        return code, {result["name"]: (result["state"], result["text"]) for result in results}

    return run


def assert_told(check: Check, overrides: list[str], name: str, state: str, *texts: str) -> None:
    """The error stands in the line `name`, no other line fails, and the exit code is right."""
    code, found = check(*overrides)
    assert found[name][0] == state, found[name]
    for text in texts:
        assert text in found[name][1]
    assert code == (2 if state == "fail" else 0)
    assert [other for other, (state, _) in found.items() if state == "fail" and other != name] == []


def launched(monkeypatch: pytest.MonkeyPatch, *, ranks: int) -> None:
    """As rank 0 of a launcher, whose variables come all together."""
    launcher = {"RANK": 0, "WORLD_SIZE": ranks, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": 29500}
    for name, value in {**launcher, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))


def free(monkeypatch: pytest.MonkeyPatch, place: str, size: int) -> None:
    """Pretends that the disk of `place` has `size` bytes free."""
    real, usage = shutil.disk_usage, namedtuple("usage", "total used free")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(size, 0, size) if str(path).startswith(place) else real(path)
    )


def test_compile_without_a_compiler(check: Check, no_compiler: None) -> None:
    assert check()[0] == 0, "auto compiles nothing on a CPU"
    assert_told(check, ["compile=true"], "device", "fail", "needs a C++ compiler", "install g++", "compile=false")


def test_a_sound_run_passes_every_line(check: Check, tmp_path: Path) -> None:
    code, found = check()
    assert code == 0 and {state for state, _ in found.values()} == {"pass"}, found
    names = "config versions device port W&B remote data tokens memory folder space resume".split()  # noqa: SIM905
    assert set(names) | {"learning rate", "loader", "shared memory"} == set(found)
    assert not (tmp_path / "run").exists(), "nothing was made"


@pytest.mark.parametrize(("threads", "words"), [(1, "CPU, 1 thread,"), (2, "CPU, 2 threads,")])
def test_threads_are_counted_in_plain_english(check: Check, monkeypatch, threads: int, words: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert check("precision=fp32")[1]["device"][1].startswith(words)


def test_too_little_disk(check: Check, tmp_path: Path, monkeypatch) -> None:
    free(monkeypatch, str(tmp_path), 100_000)
    assert_told(check, [], "space", "fail", "4 checkpoints", "lower save_num_checkpoints_to_keep (3)")


def test_disk_for_the_beginning_alone_is_a_warning(check: Check, tmp_path: Path, monkeypatch) -> None:
    free(monkeypatch, str(tmp_path), 10_000_000)
    settings = ["keep_every=2560tok", "max_duration=1000000tok", "save_interval=1ba"]
    assert_told(check, settings, "space", "warn", "enough to begin", "raise keep_every")


def test_another_tokenizer_than_the_datas(check: Check, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other", write_text(tmp_path / "t.jsonl", documents=50, seed=5), size=280)
    assert_told(check, [f"tokenizer={other}"], "data", "fail", "tokenizer", "convert the text again")


def test_a_run_folder_with_other_settings(check: Check, tiny: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny / "tokenizer")
    assert_told(
        check,
        [],
        "resume",
        "fail",
        "cannot be resumed with other settings",
        "model.n_heads: was 4, is 2",
        "run_name=NEW",
    )


def test_weights_of_another_run_that_are_not_there_or_do_not_fit(check: Check, tiny: Path, tmp_path: Path) -> None:
    assert_told(check, ["load_path=nowhere"], "resume", "fail", "nowhere: is not there; give a run folder")
    other = write_run(tmp_path / "other", tiny / "tokenizer")
    assert_told(check, [f"load_path={other}"], "resume", "fail", "its weights belong to another model", "model.n_heads")
    shape = [f"model.{name}={value}" for name, value in (("n_heads", 4), ("n_kv_heads", 2), ("expert_hidden", 24))]
    assert_told(check, [f"load_path={other}", *shape], "resume", "pass", "starts fresh, from", "step-00000010")
    shape.append("model.rope_theta=5e5")
    assert_told(check, [f"load_path={other}", *shape], "resume", "warn", "step-00000010; changed", "is 500000.0")


def test_data_and_run_folders_that_cannot_be_read(check: Check, tmp_path: Path, monkeypatch) -> None:
    real = Path.read_bytes

    def refused(self: Path) -> bytes:
        if self.name == "run.json":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        assert_told(check, [], "resume", "fail", "run.json: cannot be read: Permission denied")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/meta.json").mkdir()
    assert_told(check, [f"train_data.local={tmp_path / 'data'}"], "data", "fail", "meta.json: cannot be read")


def test_a_run_folder_of_another_run(check: Check, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"id": "0123abcd", "run_name": "mine"}')
    assert_told(check, [], "resume", "fail", "holds another run, 'mine'", "another name")
    (tmp_path / "run/run.json").write_text("[")
    assert_told(check, [], "resume", "fail", "is damaged")


def test_a_run_folder_in_which_another_process_trains(check: Check, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with open(tmp_path / "run/.lock", "w") as lock:
        lock.write("pid 7 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_told(check, [], "resume", "fail", "in use by another training process (pid 7 on elsewhere)")
    assert check()[0] == 0, "looking at the lock does not keep it"


def test_data_short_of_tokens_says_how_many_epochs_it_makes(check: Check, tiny: Path) -> None:
    tokens = json.loads((tiny / "data/meta.json").read_text())["samples"]["train"] * 32
    assert_told(check, [f"max_duration={3 * tokens}tok"], "tokens", "warn", "3.0", "epochs", "lower max_duration")


def test_data_that_is_not_there_is_told_without_looking_for_the_tokenizer(check: Check, monkeypatch) -> None:
    import moe.train.inputs

    def never(name: str) -> None:
        raise AssertionError("a hub would be asked")

    monkeypatch.setattr(moe.train.inputs, "load_tokenizer", never)
    assert_told(check, ["train_data.local=nowhere"], "data", "fail", "nowhere", "convert")


@pytest.mark.parametrize("key", ["optimizer.lr", "optimizer.adamw.lr"])
def test_a_learning_rate_a_hundred_times_too_high(check: Check, key: str) -> None:
    assert_told(check, [f"{key}=3"], "learning rate", "warn", f"{key} (3) is 100 times the 0.03", "use about 0.03")


@pytest.mark.parametrize(
    ("settings", "usual"),
    [
        (["optimizer.lr=0.04", "max_duration=2000ba"], "0.0091"),
        (["optimizer.lr=0.13"], "0.03"),
        (["optimizer.lr=0.08", "optimizer.name=adamw"], "0.019"),
    ],
)
def test_a_learning_rate_four_times_the_usual(check: Check, settings: list[str], usual: str) -> None:
    """It passed without a word: in a long run, and in a short one, whose usual rate is another."""
    rate = settings[0].split("=")[1]
    assert_told(check, settings, "learning rate", "warn", f"optimizer.lr ({rate}) is 4", f"times the {usual}", "use ab")


def test_a_rate_that_the_learning_page_advises_for_few_steps_is_no_warning(check: Check) -> None:
    assert check("optimizer.lr=0.03", "max_duration=900ba")[1]["learning rate"][0] == "pass"
    assert check("optimizer.lr=0.03", "max_duration=2000ba")[1]["learning rate"][0] == "warn"


def test_the_learning_rates_of_the_yamls_are_usual(monkeypatch) -> None:
    from moe.config import load_config
    from moe.optim.auto import resolve
    from moe.plan.checks.settings import check_settings

    root = Path(__file__).resolve().parents[4]
    for path in sorted((root / "yamls").glob("*.yaml")):
        found = check_settings(resolve(load_config(path))[0], vocab_size=50257, world_size=1)
        assert [result.state for result in found] == ["pass"], found


def test_s3_that_refuses(check: Check, monkeypatch) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Refuses(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_DELETE = refuse

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"S3_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    moe.common.s3._client.cache_clear()
    try:
        code, found = check("save_folder=s3://bucket/run")
    finally:
        server.shutdown()
        moe.common.s3._client.cache_clear()
    assert code == 2 and found["remote"][0] == found["resume"][0] == "fail"
    assert "s3://bucket/run: cannot write" in found["remote"][1] and "check the credentials" in found["remote"][1]


def test_an_s3_folder_is_written_read_and_left_as_it_was(
    check: Check, bucket: str, tmp_path: Path, monkeypatch
) -> None:
    from moe.common.s3 import RemoteFolder

    monkeypatch.chdir(tmp_path)
    code, found = check(f"save_folder={bucket}/run")
    assert code == 0 and found["remote"] == ("pass", f"{bucket}/run: written, read and removed")
    assert RemoteFolder(bucket).list() == {} and not (tmp_path / "runs").exists()


def test_many_more_loader_processes_than_cores(check: Check, monkeypatch) -> None:
    import torch

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert check("num_workers=16")[1]["loader"] == ("pass", "num_workers (16): 16 loader processes on 8 CPU cores")
    assert_told(check, ["num_workers=17"], "loader", "warn", "17 loader processes on 8 CPU cores", "num_workers=8 is")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    launched(monkeypatch, ranks=4)
    assert_told(check, ["num_workers=5"], "loader", "warn", "num_workers (5) x 4 ranks: 20 loader", "num_workers=2 is")


def test_tiny_shared_memory(check: Check, monkeypatch) -> None:
    free(monkeypatch, "/dev/shm", 1 << 18)
    assert_told(check, ["num_workers=2"], "shared memory", "fail", "--shm-size", "lower num_workers (2)")


@pytest.mark.parametrize(
    ("order", "state", "text"),
    [
        (None, "pass", "about 0.5 MB"),
        ({"name": "window-1", "window": 32}, "pass", "about 0.5 MB"),
        ("none", "fail", "31.25 GB of them for the order that this run began with (py1e; a new run takes none)"),
    ],
)
def test_shared_memory_for_a_trillion_tokens(
    check: Check, tmp_path: Path, monkeypatch, order: object, state: str, text: str
) -> None:
    """1.95 billion sequences: only a run that began with Streaming's order shares an array of them."""
    from moe.train import inputs
    from moe.train.checkpointing.checkpoints import write_checkpoint

    sound = inputs.check_data
    many = 1_953_125_000 * 32
    monkeypatch.setattr(inputs, "check_data", lambda *args: dataclasses.replace(sound(*args), epoch_tokens=many))
    free(monkeypatch, "/dev/shm", 64 << 20)
    if order is not None:
        position = {"epoch": 0, "sample_in_epoch": 0} | ({} if order == "none" else {"order": order})
        manifest = {"config": {}, "data": "d", "eos_id": 0, "vocab_size": 300, "tokens": 0}
        write_checkpoint(tmp_path / "run", 10, {"state": {"dataset_state": {"train": position}}}, manifest, {})
    _, found = check("num_workers=1")
    assert found["shared memory"][0] == state and text in found["shared memory"][1], found["shared memory"]


def test_a_folder_that_cannot_be_written(check: Check, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    for folder, text in (
        (tmp_path / "file" / "run", "is not a folder"),
        (Path("/proc/run"), "/proc cannot be written"),
    ):
        assert_told(check, [f"save_folder={folder}"], "folder", "fail", text, "give another one")
    import tempfile

    def refused(**settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert_told(check, [], "folder", "fail", "Permission denied")


def test_a_port_that_is_taken(check: Check, monkeypatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        assert_told(check, [], "port", "fail", "is taken by another process", "choose another")


def test_wandb_without_a_login(check: Check, tmp_path: Path, monkeypatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    settings = ["loggers.wandb.project=p"]
    assert_told(check, settings, "W&B", "fail", "no login for api.wandb.ai", "loggers.wandb.mode=offline")
    assert_told(check, [*settings, "loggers.wandb.mode=offline"], "W&B", "pass", "offline")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert_told(check, settings, "W&B", "pass", "login for api.wandb.ai")
    (tmp_path / "netrc").write_text("machine machine")
    assert_told(check, settings, "W&B", "fail", "no login")


def test_a_package_of_another_version(check: Check, monkeypatch) -> None:
    import importlib.metadata

    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["torch>=99", 'nonsense; extra == "dev"', "no-such"]
    )
    assert_told(
        check, [], "versions", "fail", "torch>=99 is asked for and 2.", "no-such is not installed", "make setup"
    )


def test_the_pythons_are_those_that_the_package_asks_for(check: Check, monkeypatch) -> None:
    """F3: 3.13 is one of them; there is no second list that could say otherwise."""
    import importlib.metadata
    import re
    from pathlib import Path

    from packaging.specifiers import SpecifierSet

    import moe.plan.checks.machine as machine

    setup = (Path(__file__).parents[4] / "setup.py").read_text(encoding="utf-8")
    asked = re.search(r'python_requires="([^"]+)"', setup)
    assert asked is not None and all(f"3.{minor}.2" in SpecifierSet(asked[1]) for minor in (10, 11, 12, 13))
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    for bound, verdict in ((asked[1], "pass"), (">=3.99", "fail"), ("<3.2,>=3.1", "fail")):
        monkeypatch.setattr(importlib.metadata, "metadata", lambda name, bound=bound: {"Requires-Python": bound})
        found = machine.check_versions()
        assert found.state == verdict, found
        assert verdict == "pass" or f"{bound} is asked for" in found.text


def test_a_step_that_memory_does_not_hold(check: Check, monkeypatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("memory", "available")(1_000_000))
    assert_told(check, [], "memory", "warn", "this machine has 1.0 MB", "lower device_train_microbatch_size")


def test_a_batch_that_the_ranks_cannot_share(check: Check, monkeypatch) -> None:
    launched(monkeypatch, ranks=3)
    assert_told(check, [], "ranks", "fail", "global_train_batch_size (8) is not divisible by 3 ranks")


def test_a_wrong_config_is_the_only_line(check: Check) -> None:
    code, found = check("model.top_k=9")
    assert code == 2 and list(found) == ["config"] and "exceeds model.n_experts" in found["config"][1]


def test_a_model_that_no_export_can_express_and_what_an_engine_loses_are_told_before_training(tmp_path: Path) -> None:
    from moe.config import load_config
    from moe.plan.checks.settings import check_settings

    def told(*overrides: str, state: str = "fail") -> list[str]:
        path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))
        found = check_settings(load_config(path, list(overrides)), vocab_size=300, world_size=1)
        return [result.text for result in found if result.name == "export" and result.state == state]

    assert (
        told() == told("model.norm_topk_prob=false") == told("model.balance=sign", "model.scoring_func=sigmoid") == []
    )
    (text,) = told("model.balance=sign", "model.n_shared_experts=1")
    assert "Qwen3MoeForCausalLM needs model.balance loss (is sign), model.n_shared_experts 0 (is 1)" in text
    assert "Glm4MoeForCausalLM needs model.scoring_func sigmoid (is softmax);" in text
    assert told(state="warn") == told("model.qk_norm=false", state="warn") == []
    (text,) = told("model.first_k_dense_replace=1", state="warn")
    assert "model.first_k_dense_replace (1): llama.cpp's Qwen3-MoE has no dense layers" in text

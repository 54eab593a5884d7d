import errno
import fcntl
import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from moe.cli.main import main
from moe.data.read.fingerprint import data_fingerprint
from moe.runs import lines
from moe.runs.listing import list_runs, table
from tests.unit.plan.test_new import write_meta
from tests.unit.runs.folders import ALARM, CHANGED, make_run, row, training_in

GONE = 2**22 + 1  # no process has such a number


def test_all_runs_are_listed_the_newest_first(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_run(tmp_path / "finished")
    make_run(tmp_path / "broken", state="failed", steps=20, saved=())
    make_run(tmp_path / "killed", state="running", steps=40)
    live = make_run(tmp_path / "live", state="running", steps=60, saved=(50,))
    with training_in(live):
        assert main(["runs", str(tmp_path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(["runs", str(tmp_path)]) == 0
    assert [one["name"] for one in found] == ["live", "killed", "broken", "finished"]
    assert [one["state"] for one in found] == ["running", "interrupted", "failed", "done"]
    assert (found[0]["step"], found[0]["saved"], found[0]["seconds_left"]) == (60, 50, 20.0)
    assert found[0]["validation"] == 4.5 and found[0]["best"] == 4.5
    assert found[2]["saved"] is None
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    assert [word for word in table.split() if word in ("running", "interrupted", "failed", "done")][1:] == [
        "running",
        "interrupted",
        "failed",
        "done",
    ]


def test_without_a_folder_the_default_ones_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2
    assert "./checkpoints and ./runs" in capsys.readouterr().err
    make_run(tmp_path / "checkpoints" / "a")
    make_run(tmp_path / "runs" / "b")
    assert main(["runs", "--json"]) == 0
    assert {one["folder"] for one in json.loads(capsys.readouterr().out)} == {"checkpoints/a", "runs/b"}


def test_a_damaged_run_is_told_beside_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_run(tmp_path / "good")
    (make_run(tmp_path / "bad") / "run.json").write_text("{")
    assert main(["runs", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "done" in shown.out and "is damaged" in shown.err
    assert main(["runs", str(tmp_path / "bad")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "is damaged" in shown.err


@pytest.mark.parametrize(("width", "encoding"), [(80, "utf-8"), (80, "ascii"), (60, "utf-8"), (40, "utf-8")])
def test_a_run_is_one_line_whatever_the_length_of_its_path(tmp_path: Path, width: int, encoding: str) -> None:
    folder = make_run(
        tmp_path / ("a-long-name-" * 5 + "7"),
        rows=[row(1_234_566)],
        saved=(1_234_567,),
        state="stopped",
        max_duration="9000000ba",
    )
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width)
    console.print(table(list_runs([folder])[0], time.time(), console))
    console.file.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert max(map(len, lines)) <= width
    (line,) = [line for line in lines if "interrupted" in line]
    name = line.strip(" |").split()[0]
    dots = "…" if encoding == "utf-8" else "..."
    assert name.startswith(dots) and name.endswith("-long-name-7") and line.count(dots) == 1
    assert ("1,234,567" in line) == (width == 80)


@pytest.mark.parametrize("name", ["metrics", "events", "alarms"])
def test_a_log_that_cannot_be_read_costs_one_note(tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    run, other = str(make_run(tmp_path / "run")), str(make_run(tmp_path / "other"))
    (tmp_path / "run" / f"{name}.jsonl").unlink(missing_ok=True)
    (tmp_path / "run" / f"{name}.jsonl").mkdir()
    for command in (["runs", str(tmp_path)], ["report", run], ["diff", run, other], ["watch", run, "--once"]):
        assert main(command) == 0, command
        shown = capsys.readouterr()
        assert "".join((shown.out + shown.err).split()).count(f"{name}.jsonlcannotberead") == 1, command


def test_a_run_json_that_cannot_be_read_is_told_beside_the_other_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad")
    (bad / "run.json").unlink()
    (bad / "run.json").mkdir()
    for command in (["runs", str(tmp_path)], ["watch", str(bad)], ["report", str(bad)], ["diff", str(bad), str(bad)]):
        assert main(command) == 2
        shown = capsys.readouterr()
        assert f"{bad / 'run.json'} cannot be read (Is a directory); restore" in shown.err
        assert ("done" in shown.out) == (command[0] == "runs")


def test_control_characters_of_files_reach_neither_terminal_nor_page(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    evil = "a\x1b[2J\x07\x9b\u202e\udc9b[/x]"
    rows = [{**row(2), f"{evil}/x": 1.0, f"metrics/eval/{evil}/loss": 2.0, f"samples/{evil}": evil}]
    alarm = dict.fromkeys(ALARM, evil)
    run = make_run(
        tmp_path / "\x1b[31mred[/y]", rows=rows, alarms=(alarm,), versions={evil: evil}, run_name=evil, note=evil
    )
    (run / "run.json").write_text(json.dumps({"run_name": evil, "state": "done", "host": evil, evil: evil}))
    with open(run / "config.yaml", "a") as file:
        file.write('"k\\e": "v\\e[2J"\n')
    other = make_run(tmp_path / "other")
    for command in (["runs", str(tmp_path)], ["watch", str(run), "--once"], ["report", str(run)], ["diff", str(run)]):
        assert main([*command, *([str(other)] if command[0] == "diff" else [])]) == 0, command
        shown = capsys.readouterr()
        assert set("\x1b\x07\x9b\u202e\udc9b").isdisjoint(shown.out + shown.err), command
    assert set("\x1b\x07\x9b\u202e").isdisjoint((run / "report.html").read_text())
    assert main(["watch", str(run / "\x1b[2J")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_diff_shows_config_data_and_versions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "data"
    write_meta(data, dataset="fineweb", seq_len=128, tokens={"train": 1000, "val": 1})
    first = make_run(tmp_path / "a")
    second = make_run(
        tmp_path / "b",
        optimizer={"name": "muon", "lr": 0.005},
        train_data={"local": str(data)},
        versions={"torch": "2.7.0", "numpy": "2.1.3"},
    )
    for manifest in tmp_path.glob("*/step-*/manifest.json"):
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "data": data_fingerprint(data)}))
    assert main(["diff", str(first), str(second)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "optimizer.lr 0.001 -> 0.005" in lines
    assert "tokens.train - -> 1000" in lines
    assert "torch 2.11.0 -> 2.7.0" in lines
    assert not any("global_train_batch_size" in line or line.startswith("fingerprint") for line in lines)


def test_diff_says_what_cannot_be_known(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = make_run(tmp_path / "a", run_name="same"), make_run(tmp_path / "b", run_name="same", saved=())
    assert main(["diff", str(first), str(second)]) == 0
    out = capsys.readouterr().out
    assert "config: the same" in out
    assert f"versions: no checkpoint that could tell in {second}" in out and "versions: 0" not in out
    assert out.count("versions:") == 1, "what is not known does not differ"
    assert main(["diff", str(first), str(tmp_path / "nowhere")]) == 2


MIXED = [{"step": 2, "train/loss": 4.0, "metrics/eval/code/loss": 2.5, "metrics/eval/web/loss": 3.5}]
MIXED += [{"step": 4, "train/loss": 3.9, "metrics/eval/code/loss": 2.75, "metrics/eval/web/loss": 3.25}]


def test_a_mixture_shows_each_validation_set_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """D5: in the list, in its JSON and in the report's tile and table."""
    folder = make_run(tmp_path / "mixed", steps=4, rows=MIXED)
    plain = make_run(tmp_path / "plain")
    assert main(["runs", str(folder), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["validations"] == {"code": {"loss": 2.75, "best": 2.5}, "web": {"loss": 3.25, "best": 3.25}}
    assert found["validation"] is None, "no set speaks for all"
    assert main(["runs", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "code 2.750" in out and "web 3.250" in out
    assert main(["report", str(folder), "--compare", str(plain), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "<b class=several>code 2.750, web 3.250</b><em>lowest code 2.500, web 3.250</em>" in page
    assert "<td>code 2.750, web 3.250</td>" in page and "<td>4.500</td>" in page


def test_what_was_changed_in_mid_run_is_told_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: it was a number, and that only with --json."""
    monkeypatch.setenv("COLUMNS", "400")  # where a line breaks hangs on how long the folder's name is
    many = [{"key": f"versions.p{n}", "was": "1", "now": "2"} for n in range(9)]
    later = ({**CHANGED[2], "step": 60}, {**CHANGED[3], "step": 60, "changes": many, "rate": "learning rate 1 -> 2"})
    make_run(tmp_path / "changed", events=(*CHANGED, *later))
    make_run(tmp_path / "plain")
    assert main(["runs", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "changed: changed after step 50: optimizer.lr 0.002 -> 0.001, alert_command null -> <a>" in out
    assert "changed after step 60: versions.p0 1 -> 2," in out and "and 3 more (learning rate 1 -> 2)" in out
    assert "plain: changed" not in out
    assert main(["runs", str(tmp_path), "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["changed"]["changes"] == 11 and len(found["changed"]["changed"]) == 2
    assert found["plain"]["changed"] == []


def test_without_locks_a_run_is_not_called_dead(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    """B7: on Lustre or NFS a run at work was listed as interrupted. (Simulated: fcntl's errors.)"""
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: raise_(OSError(errno.ENOLCK, "No locks available")))
    runs = {"works": os.getpid(), "long-quiet": os.getpid(), "just-died": GONE, "died": GONE}
    for name, pid in runs.items():
        folder = make_run(tmp_path / name, state="running", steps=40)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "pid": pid}))
        (folder / ".lock").touch()
        if name in ("long-quiet", "died"):
            for file in folder.iterdir():
                os.utime(file, (1e9, 1e9))
    assert main(["runs", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    states = {one["name"]: one["state"] for one in json.loads(shown.out)}
    unsure = "running or interrupted"
    assert states == {"works": unsure, "long-quiet": unsure, "just-died": unsure, "died": "interrupted"}
    assert shown.err.count("running or interrupted: this file system has no locks") == 3
    for command in (["runs", str(tmp_path)], ["watch", str(tmp_path / "works"), "--once"]):
        assert main(command) == 0
        shown = capsys.readouterr()
        assert unsure in shown.out and "no locks" in " ".join((shown.out + shown.err).split())
    assert main(["report", str(tmp_path / "works")]) == 0
    assert unsure in (tmp_path / "works/report.html").read_text()


def raise_(error: Exception) -> None:
    raise error


def test_of_a_long_log_the_list_and_diff_parse_a_part_and_show_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows: list[dict] = [row(step) for step in range(1, 600)]
    rows[200:200] = [{"step": 200, "metrics/eval/web/loss": 3.0}]
    rows += [{"step": 600, "metrics/eval/web/loss": 3.5}]
    folders = [make_run(tmp_path / name, rows=rows, max_duration="700ba") for name in ("a", "b")]
    commands = (["runs", str(tmp_path), "--json"], ["diff", *map(str, folders)])
    parsed: list[bytes] = []
    json_object = lines.json_object
    monkeypatch.setattr(lines, "json_object", lambda line: parsed.append(line) or json_object(line))
    shown: list[str] = []
    for many in (10**6, 300):
        monkeypatch.setattr(lines, "MANY", many)
        parsed.clear()
        for command in commands:
            assert main(command) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and '"best": 3.0' in shown[0]
    assert len(parsed) < 500, "of 4 x 600 rows"

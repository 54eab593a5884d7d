import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.runs.page import report_page
from moe.runs.png import title_of
from moe.runs.reading import read_run
from moe.runs.report import Report
from tests.unit.runs.folders import ALARM, CHANGED, KILLED, make_run, row
from tests.unit.runs.pages import parse, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_page_holds_all_it_needs_and_tells_what_happened(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "small", events=KILLED, alarms=(ALARM,))
    page = write(tmp_path, str(folder))
    parsed = parse(page)
    text = " ".join(parsed.text)
    assert parsed.addresses == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)
    for words in ("Loss", "Learning rate", "Gradient norm", "Throughput", "Layer 0", "Layer 1", "odd/metric"):
        assert words in text, words
    for words in ("killed", ALARM["message"], ALARM["fix"], " upon a time", "optimizer.lr", "torch", "fingerprint"):
        assert words in text, words
    assert "1m10s" in text  # 60 s until it went on, 10 s for 20 steps retrained
    assert (tmp_path / "out" / "page.png").read_bytes().startswith(b"\x89PNG")


def test_text_of_files_is_shown_and_never_run(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    rows = [row(step) for step in range(2, 20, 2)]
    rows += [{"step": 20, evil: 1.0, f"samples/{evil}": evil, f"metrics/eval/{evil}/loss": 3.0}]
    rows += [{"step": 20, f"optim/lr/{evil}": 1.0, f"{evil}/layer_00": 1.0}]
    alarm = dict.fromkeys(ALARM, evil)
    events = (*KILLED[:1], {**KILLED[1], "event": "stop", "reason": evil}, KILLED[2])
    folder = make_run(
        tmp_path / "run", rows=rows, alarms=(alarm,), events=events, versions={evil: evil}, note=evil, run_name=evil
    )
    (folder / "run.json").write_text(json.dumps({"run_name": evil, "state": "done", evil: evil}))
    for labels in ((evil,), (evil, "b")):
        page = report_page(Report.of({label: read_run(folder) for label in labels}))
        assert "<img" not in page
        assert page.count("<script") == page.count("</script>") == 1 + page.count('<script type="application/json">')
        parse(page)


def test_runs_side_by_side_show_what_differs_between_them(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", versions={"torch": "2.11.0"})
    second = make_run(tmp_path / "b", optimizer={"name": "muon", "lr": 0.005}, versions={"torch": "2.7.0"})
    text = " ".join(parse(write(tmp_path, str(first), "--compare", str(second))).text)
    for words in ("optimizer.lr", "0.005", "2.7.0", "No difference in data"):
        assert words in text, words


@pytest.mark.parametrize("rows", [[], [{"step": 2, "train/loss": 3.0}], [{"step": 0, "metrics/eval/loss": 9.0}]])
def test_a_run_with_hardly_anything_logged_gets_a_page(tmp_path: Path, rows: list[dict]) -> None:
    folder = make_run(tmp_path / "new", state="running", rows=rows, saved=())
    parse(write(tmp_path, str(folder)))
    assert (tmp_path / "out" / "page.png").exists() == bool(rows)


def test_a_run_without_a_config_gets_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "new")
    (folder / "config.yaml").write_text("run_name: [")
    assert "new" in " ".join(parse(write(tmp_path, str(folder))).text)


@pytest.mark.parametrize(("junk", "lines"), [(b"\x00\xff\n\x80{\n\xfe", "2 lines"), (b"\xff\x00\n", "1 line")])
def test_metrics_of_which_no_line_can_be_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, junk: bytes, lines: str
) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_bytes(junk)
    text = " ".join(parse(write(tmp_path, str(folder))).text)
    shown = capsys.readouterr()
    told = f"{folder / 'metrics.jsonl'} is damaged: none of its {lines} can be read; shown as if it were not there"
    assert told in shown.err and told in text
    assert "no row of metrics can be read, so no picture" in shown.out and "No row of metrics can be read." in text
    assert "written yet" not in shown.out + text


def test_the_picture_names_the_state_of_each_run(tmp_path: Path) -> None:
    done = read_run(make_run(tmp_path / "ref", steps=24))
    stopped = read_run(make_run(tmp_path / "own", steps=20, state="stopped"))
    assert (
        title_of(Report.of({"ref": done, "own": stopped}).summaries)
        == "ref (done, step 24) and own (interrupted, step 20)"
    )
    assert title_of(Report.of({"ref": done}).summaries) == "ref   done, step 24"


def test_what_cannot_be_written_or_compared_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = str(make_run(tmp_path / "run"))
    (tmp_path / "file").touch()
    for more, words in (
        (["--out", str(tmp_path / "page.txt")], "must end in .html"),
        (["--out", str(tmp_path / "file" / "page.html")], "cannot be written"),
        (["--compare", folder], "is given twice"),
        (["--compare", str(tmp_path / "nowhere")], "no such folder"),
    ):
        assert main(["report", folder, *more]) == 2
        assert words in capsys.readouterr().err


def test_the_report_goes_into_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html"), "and", str(folder / "report.png")]
    assert (folder / "report.html").is_file() and (folder / "report.png").is_file()
    assert not list(folder.glob(".report*"))


def test_a_full_disk_leaves_an_earlier_report_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from moe.runs.page import MADE

    folder = make_run(tmp_path / "run")
    earlier = f"{MADE} the earlier one"
    (folder / "report.html").write_text(earlier)

    def fills_the_disk(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fills_the_disk)
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: fills_the_disk(path, text.encode()))
    assert main(["report", str(folder)]) == 2
    told = capsys.readouterr().err
    assert f"{folder / 'report.html'} cannot be written (No space left on device); make room" in told
    assert (folder / "report.html").read_text() == earlier
    assert not list(folder.glob(".report*"))


def test_badge_and_facts_name_the_same_state(tmp_path: Path) -> None:
    for state in ("stopped", "running"):
        page = write(tmp_path, str(make_run(tmp_path / state, state=state)))
        assert '<span class="badge interrupted">interrupted</span>' in page
        assert "<th>state</th><td>interrupted</td>" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_opens_in_chromium_and_shows_numbers_under_the_pointer(tmp_path: Path) -> None:
    page = write(tmp_path, str(make_run(tmp_path / "small", events=KILLED, alarms=(ALARM,))))
    listen = """
    window.errors = [];
    window.addEventListener("error", (event) => window.errors.push(event.message));
    """
    look = """
    for (const svg of document.querySelectorAll("svg")) {
      const box = svg.getBoundingClientRect();
      const at = { clientX: box.left + box.width * 0.6, clientY: box.top + box.height * 0.4 };
      if (box.width) svg.dispatchEvent(new PointerEvent("pointermove", at));
    }
    const tips = [...document.querySelectorAll(".tip")].map((tip) => tip.innerText);
    const wide = document.documentElement.scrollWidth > window.innerWidth;
    for (const svg of document.querySelectorAll("svg")) svg.dispatchEvent(new PointerEvent("pointerleave"));
    const left = document.querySelectorAll(".tip, line.here").length;
    document.title = JSON.stringify({ tips, wide, left, errors: window.errors });
    """
    page = page.replace("<head>", f"<head><script>{listen}</script>")
    page = page.replace("</body>", f"<script>{look}</script></body>")
    path = tmp_path / "moved.html"
    path.write_text(page)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60)
    match = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    found = json.loads(match[1].replace("&amp;", "&"))
    assert (found["errors"], found["wide"], found["left"]) == ([], False, 0)
    assert found["tips"][0].startswith("60") and "training" in found["tips"][0] and "validation" in found["tips"][0]
    assert any("expert 2: 1" in tip for tip in found["tips"]), found["tips"]


def test_a_change_in_mid_run_is_a_line_with_its_text_and_a_row(tmp_path: Path) -> None:
    """D1: at its step, in every chart; texts of files are escaped; other runs' older files have none."""
    folder = make_run(tmp_path / "run", events=CHANGED)
    page = write(tmp_path, str(folder))
    assert 'class="change right"' in page or 'class="change left"' in page
    assert "optimizer.lr 0.002 -&gt; 0.001; alert_command null -&gt; &lt;a&gt;" in page and "<a>" not in page
    assert "<td>A</td><td>50</td><td>optimizer.lr</td><td>0.002</td><td>0.001</td>" in page
    assert 'class="change' not in write(tmp_path, str(make_run(tmp_path / "old", events=KILLED)))


def test_a_change_that_was_gone_back_behind_is_none_of_the_run(tmp_path: Path) -> None:
    """D1: a start from the same or an earlier step lists its own changes."""
    from moe.runs.changes import changes

    again = {**CHANGED[2], "time": "2026-01-01T00:01:00Z"}
    run = read_run(make_run(tmp_path / "run", events=(*CHANGED, again)))
    assert changes(run) == []
    later = {**again, "step": 60}
    run = read_run(make_run(tmp_path / "later", events=(*CHANGED, later)))
    assert [change.key for change in changes(run)] == ["optimizer.lr", "alert_command"]


def test_heat_maps_beside_other_runs_name_their_run(tmp_path: Path) -> None:
    """D7: with --compare; alone there is nothing to confuse it with."""
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other")
    page = write(tmp_path, str(one), "--compare", str(other))
    assert "load over the fair share, by expert, one</span>" in page and "<h2>Experts of one</h2>" in page
    assert ", one</span>" not in write(tmp_path, str(one))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [700, 850, 1200])
def test_labels_are_large_enough_to_read_at_any_width(tmp_path: Path, width: int) -> None:
    """D7: of every chart that is seen, in CSS pixels as shown."""
    page = tmp_path / "measured.html"
    text = write(tmp_path, str(make_run(tmp_path / "run", events=CHANGED)))
    script = (
        "<script>document.title = Math.min(...[...document.querySelectorAll('section > .grid svg text')].map(t => "
        "parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a)).toFixed(1)</script></body>"
    )
    page.write_text(text.replace("</body>", script))
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command.append(f"--user-data-dir={tmp_path / 'profile'}")
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    (smallest,) = re.findall(r"<title>([\d.]+)</title>", done.stdout)[:1]
    assert float(smallest) >= 8.5

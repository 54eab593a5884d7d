"""Makes the pictures of README and docs/monitoring.md from two real runs of a smaller yamls/demo.yaml: `make pictures`.

The first run is killed (kill -9) after 55%, stopped (SIGTERM) after 80%, and goes on each time; the second has another
learning rate. Needs Chromium, to take pictures of the page.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

from PIL import Image
from rich.console import Console

from moe.cli.main import main as moe
from moe.runs.frame import frame
from moe.runs.reading import RunReader

PICTURES = Path(__file__).parent / "pictures"
RUNS = Path("checkpoints/pictures")
DATA = Path("data/demo/mds")
STEPS = 140  # of 2,048 tokens
SETTINGS = [
    "yamls/demo.yaml",
    f"max_duration={STEPS * 2048}tok",
    "log_interval=2ba",
    "save_interval=20ba",
    "eval_interval=20ba",
    "global_train_batch_size=8",
    "model.d_model=96",
    "model.expert_hidden=128",
]
SETTINGS.append('sample_prompts=["Return a new list with","This module provides"]')
FIRST, SECOND = "lr-4e-3", "lr-1e-3"
AWAY = 10  # seconds between an interruption and the next start


def train(name: str, lr: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "train.py",
        *SETTINGS,
        f"run_name={name}",
        f"save_folder={RUNS / name}",
        f"optimizer.lr={lr}",
    ]
    return subprocess.Popen(command)


def wait_for(process: subprocess.Popen, reader: RunReader, step: int) -> None:
    """Until the run has logged `step`; ends with the run's exit code where it ends before."""
    while not (reader.path / "run.json").exists() or reader.read().step < step:
        if process.poll() is not None:
            sys.exit(process.returncode)
        time.sleep(0.5)


def first_run() -> None:
    reader = RunReader(RUNS / FIRST)
    for share, how in ((0.55, signal.SIGKILL), (0.8, signal.SIGTERM)):
        process = train(FIRST, "4e-3")
        wait_for(process, reader, round(STEPS * share))
        process.send_signal(how)
        process.wait()
        time.sleep(AWAY)
    process = train(FIRST, "4e-3")
    wait_for(process, reader, round(STEPS * 0.95))
    picture_terminal(reader)
    process.wait()


def picture_terminal(reader: RunReader) -> None:
    console = Console(record=True, width=96, height=40, force_terminal=True, color_system="truecolor", file=StringIO())
    console.print(frame(reader.read(), console))
    lines = console.export_text(clear=False).count("\n")
    with tempfile.TemporaryDirectory() as folder:
        drawing = Path(folder) / "watch.svg"
        console.save_svg(str(drawing), title=f"moe watch {reader.path}")
        photograph(drawing, "watch.png", width=1190, height=50 + round(24.4 * lines))


def photograph(page: Path, name: str, *, width: int, height: int, top: int = 0, dark: bool = False) -> None:
    """A picture of `page` in docs/pictures, of few enough colours to be small."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "Chromium is needed: apt-get install chromium"
    path = PICTURES / name
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={width},{height}", f"--screenshot={path}", page.resolve().as_uri()]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    image = Image.open(path).convert("RGB").crop((0, top, width, height))
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"{DATA} is not there; run `make demo` first")
    PICTURES.mkdir(exist_ok=True)
    if "--only-pictures" not in sys.argv:
        shutil.rmtree(RUNS, ignore_errors=True)
        first_run()
        if code := train(SECOND, "1e-3").wait():
            sys.exit(code)
    with tempfile.TemporaryDirectory() as folder:
        one, both = Path(folder) / "one.html", Path(folder) / "both.html"
        moe(["report", str(RUNS / FIRST), "--out", str(one)])
        moe(["report", str(RUNS / FIRST), "--compare", str(RUNS / SECOND), "--out", str(both)])
        photograph(one, "report.png", width=1180, height=1760)
        photograph(one, "report-top.png", width=1180, height=728)
        photograph(one, "report-dark.png", width=1180, height=2770, top=2225, dark=True)
        photograph(both, "compare.png", width=1180, height=890)


if __name__ == "__main__":
    main()

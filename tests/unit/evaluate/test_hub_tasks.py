"""lm-eval's own tasks, their data fetched by `datasets` from a hub on loopback: made-up rows in the layout of each."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import WORDS, write_run
from tests.unit.data.hub_server import SHA, Hub, git_id

ROOT = Path(__file__).resolve().parents[3]
N = 6


class DatasetsHub(Hub):
    """With what huggingface_hub asks beside a list and a file: trees, paths' contents, a file's commit and tag."""

    def answer(self, handler) -> None:
        url = urlsplit(handler.path)
        path, sent = unquote(url.path), handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests[path] += 1
        asked = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(paths-info|tree)/[^/]+/?(.*)", path)
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if asked and asked[1] in self.datasets:
            root = self.datasets[asked[1]]
            if asked[2] == "paths-info":
                fields = json.loads(sent) if sent[:1] == b"{" else parse_qs(sent.decode())
                names = fields["paths"] if isinstance(fields["paths"], list) else [fields["paths"]]
                found = [root / name for name in names if (root / name).exists()]
            else:
                found = sorted((root / asked[3]).rglob("*"))
            return self.send(handler, 200, json.dumps([self.entry(root, one) for one in found]).encode())
        if file and file[1] in self.datasets and (target := self.datasets[file[1]] / file[2]).is_file():
            body = target.read_bytes()
            return self.send(handler, 200, body, {"X-Repo-Commit": SHA, "ETag": f'"{git_id(body)}"'})
        if file:
            return self.send(handler, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
        if re.fullmatch(r"/api/datasets/[^/]+/[^/]+", path):
            handler.path = f"{path}/revision/main"
        return super().answer(handler)

    @staticmethod
    def entry(root: Path, path: Path) -> dict:
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": SHA}
        return {"type": "file", "path": name, "oid": git_id(path.read_bytes()), "size": path.stat().st_size}


def sentence(i: int) -> str:
    return " ".join(WORDS[(i * 5 + j) % len(WORDS)] for j in range(5))


def rows(task: str, i: int) -> dict:
    words = [WORDS[(i + j) % len(WORDS)] for j in range(4)]
    return {
        "hellaswag": {"activity_label": "Run", "ctx_a": sentence(i), "ctx_b": "then", "endings": words, "label": "1"},
        "arc_easy": {
            "id": str(i),
            "question": sentence(i),
            "choices": {"text": words, "label": list("ABCD")},
            "answerKey": "B",
        },
        "piqa": {"goal": sentence(i), "sol1": words[0], "sol2": words[1], "label": i % 2},
        "lambada_openai": {"text": sentence(i)},
    }[task]


SETS = {
    "hellaswag": ("Rowan/hellaswag", "default", ("train", "validation", "test")),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", ("train", "validation", "test")),
    "piqa": ("baber/piqa", "default", ("train", "validation", "test")),
    "lambada_openai": ("EleutherAI/lambada_openai", "default", ("test",)),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[DatasetsHub]:
    """The four tasks' sets, as parquet and a README that names configs and splits."""
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    root = tmp_path_factory.mktemp("hub")
    for task, (name, config, splits) in SETS.items():
        folder = root / name / config
        folder.mkdir(parents=True)
        for split in splits:
            table = pa.Table.from_pylist([rows(task, i) for i in range(N)])
            pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
        files = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in splits)
        head = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
        (root / name / "README.md").write_text(head)
    hub = DatasetsHub({name: root / name for name, *_ in SETS.values()})
    yield hub
    hub.close()


SCORE = """
import sys
from pathlib import Path
import lm_eval.tasks
from moe.cli.main import main
home, known = Path(lm_eval.tasks.__file__).parent, lm_eval.tasks.TaskManager
folders = [str(home / name) for name in ("hellaswag", "arc", "piqa", "lambada")]
lm_eval.tasks.TaskManager = lambda **_: known(include_path=folders, include_defaults=False)  # all of them take 20 s
sys.exit(main(sys.argv[1:]))
"""


def score(run: Path, out: Path, home: Path, **env: str) -> subprocess.CompletedProcess:
    """In a process of its own: huggingface_hub reads its address as it is imported."""
    env |= {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    env |= {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    flags = ["eval", str(run), "--tasks", ",".join(SETS), "--limit", "4", "--fewshot", "1", "--output", str(out)]
    return subprocess.run([sys.executable, "-c", SCORE, *flags], env=env, capture_output=True, text=True, timeout=300)


def test_tasks_of_the_hub_are_fetched_and_scored_and_the_folders_it_names_serve_a_machine_without_it(
    hub, tiny: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tiny / "tokenizer")
    online = score(run, tmp_path / "online.json", tmp_path / "home", HF_ENDPOINT=hub.url)
    assert online.returncode == 0, online.stdout + online.stderr
    for name, config, _ in SETS.values():
        assert any(f"/datasets/{name}/resolve" in path and config in path for path in hub.requests), hub.requests
    asked = hub.requests.total()
    offline = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}
    missing = score(run, tmp_path / "none.json", tmp_path / "other", **offline)
    assert missing.returncode == 2 and "Traceback" not in missing.stderr, missing.stderr
    wanted = re.search(r"bring the folder (\S+) here", missing.stderr)
    assert wanted and SETS["hellaswag"][0] in missing.stderr, missing.stderr
    assert Path(wanted[1]).parent == tmp_path / "other" / "datasets"
    for name, *_ in SETS.values():
        folder = name.replace("/", "___")
        shutil.copytree(tmp_path / "home" / "datasets" / folder, tmp_path / "other" / "datasets" / folder)
    assert Path(wanted[1]).is_dir()
    brought = score(run, tmp_path / "brought.json", tmp_path / "other", **offline)
    assert brought.returncode == 0, brought.stdout + brought.stderr
    assert hub.requests.total() == asked, "a machine without a network asks for nothing"
    results = [json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("online", "brought")]
    assert results[0] == results[1] and set(results[0]) == set(SETS)
    for task, values in results[0].items():
        assert values["acc,none"] * 4 % 1 == 0, f"{task}: of four questions"

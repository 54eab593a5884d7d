"""The house: which rooms moe has, that imports between them run one way, and that files stay small.

    common <- config <- {data, model, optim} <- evaluate <- train <- {plan, use} <- cli;   runs reads files only

Inside data: the files beside the folders <- text <- {write, read}.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"common", "config", "data", "model", "optim"}
MAY_IMPORT = {
    "common": set(),
    "config": {"common"},
    "data": {"common", "config"},
    "model": {"common", "config"},
    "optim": {"common", "config"},
    "runs": {"common", "config", "data"},
    "evaluate": PARTS,
    "train": PARTS | {"evaluate"},
    "plan": PARTS | {"evaluate", "train"},
    "use": PARTS | {"evaluate", "train", "runs"},
    "cli": PARTS | {"evaluate", "train", "plan", "use", "runs"},
}
MOST_ROOMS, MOST_LINES = 12, 300
EMPTY = ("model", "optim", "train", "plan", "use", "evaluate", "common")  # their __init__ imports nothing when loaded
HEAVY = ("torch", "composer", "streaming", "transformers")
# the folders in moe/data; "" are the files beside them
DATA_MAY_IMPORT: dict[str, set[str]] = {"": set(), "text": {""}, "write": {"", "text"}, "read": {"", "text"}}
DATA_PACKAGES = {f"moe.data.{folder}".rstrip(".") for folder in DATA_MAY_IMPORT}
FILES = sorted(path for path in (ROOT / "moe").rglob("*.py") if "yamls" not in path.parts)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def imported(path: Path) -> set[str]:
    """Modules of moe that a file imports, wherever in the file; a package where it takes a name from its __init__."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which is not followed here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("moe."):
                modules.add(name if is_module(name) else name.rpartition(".")[0])
    return modules - {"moe"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_rooms_are_those_of_the_design() -> None:
    rooms = {path.name for path in (ROOT / "moe").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == MAY_IMPORT.keys() and len(rooms) <= MOST_ROOMS
    assert [path.name for path in (ROOT / "moe").glob("*.py")] == ["__init__.py"], "no loose module stands at the top"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    files = sorted((ROOT / "moe" / room).rglob("*.py"))
    assert len(files) > 2
    for path in files:
        extra = {name.split(".")[1] for name in imported(path)} - MAY_IMPORT[room] - {room}
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


def test_no_two_files_import_each_other() -> None:
    graph = {module_name(path): imported(path) for path in FILES if path.name != "__init__.py"}
    assert len(graph) > 150 and sum(len(modules & graph.keys()) for modules in graph.values()) > 500
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_files_stay_small_enough_to_be_read_in_one_go() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize("room", EMPTY)
def test_a_room_is_entered_without_loading_it(room: str) -> None:
    tree = ast.parse((ROOT / "moe" / room / "__init__.py").read_text())
    loaded = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not [line for line in loaded if "moe" in line]


@pytest.mark.parametrize("part", DATA_MAY_IMPORT)
def test_imports_run_one_way_inside_the_data_part(part: str) -> None:
    files = sorted((ROOT / "moe/data" / part).glob("*.py"))
    assert len(files) > 3
    for path in files:
        inside = {name for name in imported(path) if f"{name}.".startswith("moe.data.")}
        # a name from the package itself might be anybody's: its file has to be told
        folders = {name.split(".")[2] if name.count(".") > 2 else "" for name in inside - DATA_PACKAGES}
        extra = (inside & DATA_PACKAGES) | (folders - DATA_MAY_IMPORT[part] - {part})
        assert not extra, f"{path.relative_to(ROOT)} imports {extra}"


def test_every_folder_of_the_data_part_has_its_place_in_that_order() -> None:
    assert {path.parent.name for path in (ROOT / "moe/data").glob("*/*.py")} | {""} == DATA_MAY_IMPORT.keys()


def test_what_reads_files_starts_without_anything_heavy(tmp_path: Path) -> None:
    """In one process, as each would take the time of a start: the estimate from a yaml, a new yaml, and all that shows
    runs.
    """
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"id": "0123abcd", "run_name": "one", "state": "done"}')
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.5}\n')
    shown = [
        ["runs", str(run.parent)],
        ["watch", str(run), "--once"],
        ["report", str(run), "--out", str(tmp_path / "page.html")],
        ["diff", str(run), str(run)],
    ]
    new = ["new", "--tokens", "1B", "--gpu", "4090", "--hours", "5", "--out", str(tmp_path / "new.yaml")]
    code = f"""
import sys, moe.cli.main
loaded = lambda *names: [name for name in names if name in sys.modules]
codes = [moe.cli.main.main(["estimate", "yamls/500m.yaml"])]
codes += [moe.cli.main.main({new!r})]
first = loaded("numpy", *{HEAVY})
codes += [moe.cli.main.main(command) for command in {shown!r}]
print(codes, first, loaded(*{HEAVY}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0] [] []", done.stderr

"""The pages: links lead somewhere, files they name are there, the map of the code is the code's."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from moe.cli.main import main
from moe.config import load_config
from tests.unit.test_imports import MAY_IMPORT, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
FENCED = re.compile(r"^```.*?^```", re.M | re.S)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ +(.+)$", FENCED.sub("", page.read_text()), re.M)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).replace("`", "").strip().lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^()\s]+(?:\([^()]*\))?)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_broken(page: Path) -> None:
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text("# The title of `it`, 2\n```\n# no title\n```\n")
    page.write_text("[a](other.md) [b](other.md#the-title-of-it-2) [c](gone.md) [d](other.md#no-title) `[e](code)`")
    assert broken_links(page) == ["gone.md", "other.md#no-title"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_a_page_are_there(page: Path) -> None:
    """Whole paths in backquotes; those with a capital or a star stand for something else."""
    named = re.findall(r"`((?:moe|tests|benchmarks|yamls|convert|docs|requirements)/[a-z0-9_./-]+)`", page.read_text())
    if page.name != "CHANGELOG.md":  # which tells of former ones too
        assert not [name for name in named if not (ROOT / name).exists()]


def test_every_page_is_in_the_map_and_on_the_site() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    mapped = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs/index.md").read_text()))
    beside = {"overview.md", "contributing.md", "changelog.md"}
    assert mapped == pages
    assert set(re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)) == pages | beside | {"index.md"}


def section(name: str) -> str:
    found = re.search(rf"<!-- {name}.*?-->\n(.*?)<!-- /{name} -->", ARCHITECTURE, re.S)
    assert found
    return found[1]


def test_no_page_of_the_site_links_to_a_file_that_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """mkdocs --strict refuses it; here its hook runs without it."""
    stand_in = SimpleNamespace(File=None, Files=None)
    for name in ("mkdocs", "mkdocs.structure", "mkdocs.structure.files"):
        monkeypatch.setitem(sys.modules, name, stand_in)
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs/site_pages.py")
    assert spec is not None and spec.loader is not None
    site_pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site_pages)
    for page in (ROOT / "docs").glob("*.md"):
        assert not re.findall(r"\]\(\.\./[^)]*\)", site_pages.on_page_markdown(page.read_text())), page.name
    kept = site_pages.on_page_markdown("[a](../README.md#x) [b](../docs/data.md) [`c`](../recipes/c.yaml)")
    assert kept == "[a](overview.md#x) [b](data.md) `c`"


def test_the_folders_of_the_map_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `moe/(\w+)/` \|.*\| (.*?) ?\|$", section("folders"), re.M)
    assert sorted(name for name, _ in rows) == sorted(MAY_IMPORT)
    above: set[str] = set()
    for name, imports in rows:
        words = {
            "the above": above,
            "all but plan and cli": MAY_IMPORT.keys() - {"plan", "cli", name},
            "all": MAY_IMPORT.keys() - {name},
        }
        told = words.get(imports, set(imports.split(", ")) - {""})
        if name == "plan":  # which stands above use, and imports nothing of it
            assert MAY_IMPORT["plan"] == above
        assert MAY_IMPORT[name] == told, name
        above.add(name)


def events_of_the_code() -> set[tuple[str, str]]:
    """(event, class) of all callbacks and loggers in moe/train."""
    composer = importlib.util.find_spec("composer")  # found, not imported: that takes seconds
    assert composer is not None and composer.submodule_search_locations
    source = Path(composer.submodule_search_locations[0], "core/event.py").read_text()
    events = set(re.findall(r"^    [A-Z_]+ = '(\w+)'", source, re.M))
    assert {"batch_start", "eval_end"} < events
    found = set()
    for path in (ROOT / "moe/train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & {
                "Callback",
                "LoggerDestination",
            }:
                methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                found |= {(event, node.name) for event in methods & events}
    return found


def test_the_events_of_the_page_are_those_of_the_callbacks() -> None:
    told, events = set(), []
    for row in section("events").splitlines():
        if not row.startswith("| ") or row.startswith("| event"):
            continue
        _, first, names, *_ = row.split("|")
        events = re.findall(r"`(\w+)`", first) or events
        told |= {(event, name) for event in events for name in re.findall(r"`(\w+)`", names)}
    assert told == events_of_the_code()


@pytest.mark.parametrize("size", ["as written", "small"])
def test_the_tutorials_commands_are_taken(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make try-tutorial` runs them all; here each is read by its command's parser, and the yaml by the config."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    tutorial = importlib.import_module("tutorial")
    page = tutorial.PAGE.read_text()
    commands = tutorial.commands(page)
    assert len(commands) == page.count("\n$ ") >= 10
    assert all(any(plain in command for command in commands) for plain in tutorial.TINY)
    asked = []
    for command in [tutorial.smaller(command) if size == "small" else command for command in commands]:
        program, *words = shlex.split(command, comments=True)
        if program == "moe":
            command_file = importlib.import_module(f"moe.cli.{words[0]}")
            monkeypatch.setattr(command_file, "run", lambda args: asked.append(args) or 0)
            assert main(words) == 0
        elif program == "sed":
            shutil.copy(ROOT / "yamls/own_text.yaml", tmp_path)
            tutorial.run(command, tmp_path)
    assert len(asked) > 8
    config, plain = load_config(tmp_path / "own_text.yaml"), load_config(ROOT / "yamls/own_text.yaml")
    changed = [config.max_duration, config.model.d_model, config.model.n_layers]
    former = [plain.max_duration, plain.model.d_model, plain.model.n_layers]
    assert all(new != old for new, old in zip(changed, former, strict=True))


def test_a_command_of_the_tutorial_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    tutorial = importlib.import_module("tutorial")
    page = f"text\n```console\n$ echo {tmp_path}/one two # a comment\nold\n$ seq 40\n```\n\n    $ none\n"
    made = tutorial.make(page, tmp_path)
    assert "comment\n~/tutorial/one two\n$ seq 40\n1\n" in made and "18\n...\n34\n" in made and "old" not in made
    assert tutorial.make(made, tmp_path) == made
    with pytest.raises(tutorial.Failed, match="exit code 1"):
        tutorial.make("```console\n$ false\n```\n", tmp_path)


@pytest.mark.parametrize(("place", "word"), [("qk_norm", "qk_norm"), ("sign", '"sign"')])
def test_the_files_that_know_a_setting_or_a_rule_are_those_of_the_page(place: str, word: str) -> None:
    page = (ROOT / "docs/extending.md").read_text()
    table = re.search(rf"<!-- {place}:.*?<!-- /{place} -->", page, re.S)
    assert table
    knowing = {str(path.relative_to(ROOT)) for path in (ROOT / "moe").rglob("*.py") if word in path.read_text()}
    assert set(re.findall(r"^\| `(moe/.*?)`", table[0], re.M)) == knowing


def test_the_files_of_a_start_are_those_of_the_page() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    table = re.search(r"<!-- start:.*?<!-- /start -->", page, re.S)
    assert table
    assert set(re.findall(r"`(\w+\.py)`", table[0])) == {p.name for p in (ROOT / "moe/train").glob("[a-z]*.py")}


def test_the_classes_of_the_page_on_extending_do_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    page = (ROOT / "docs/extending.md").read_text()
    bias_code, rule_code, _, callback_code = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.setitem(sys.modules, "composer", SimpleNamespace(Callback=object))  # whose import takes seconds
    names: dict[str, Any] = {}
    exec(bias_code, names)
    exec(rule_code, names)
    exec(callback_code, names)
    rule = names["EntropyBalance"](n_layers=2, n_experts=3, weight=0.5)
    random = torch.Generator().manual_seed(0)  # of other draws a sum may be near zero, where rounding is a large share
    part, other = (SimpleNamespace(score_E=torch.rand(2, 3, generator=random) * 4) for _ in range(2))
    both = SimpleNamespace(score_E=part.score_E + other.score_E)
    rule.end_step(both, [])
    assert list(rule.state_dict()) == ["mean_LE"] and rule.mean_LE.sum(1).tolist() == pytest.approx([1, 1])
    assert rule.loss(part, 8) + rule.loss(other, 8) == pytest.approx(rule.loss(both, 8).item(), rel=1e-5)
    score = both.score_E.clone().requires_grad_()
    rule.loss(SimpleNamespace(score_E=score), 8).backward()
    assert torch.equal(score.grad.argmax(1), rule.mean_LE.argmax(1)), "the busiest expert is pushed down most"

    share = names["BiasShare"](n_layers=1, n_experts=2, weight=0.0, rate=0.1)
    router = SimpleNamespace(bias_E=torch.zeros(2))
    share.end_step(SimpleNamespace(counts_E=torch.tensor([[6.0, 2.0]])), [router])
    assert router.bias_E.tolist() == pytest.approx([-0.05, 0.05])

    model = SimpleNamespace(embed=torch.nn.Embedding(5, 4))
    logged: list[dict[str, float]] = []
    callback = names["EmbeddingNorm"](model, SimpleNamespace(due=lambda step: step == 10))
    for step in (9, 10):
        state = SimpleNamespace(timestamp=SimpleNamespace(batch=step))
        callback.batch_end(state, SimpleNamespace(log_metrics=logged.append))
    norms = [row.norm().item() for row in model.embed.weight]
    assert logged == [{"embeddings/norm": pytest.approx(sum(norms) / 5)}]

"""How much each machine will fetch, as the plan says it."""

from pathlib import Path

import pytest

from moe.config import load_config
from moe.data import StreamSpec
from moe.train import downloads
from moe.train.downloads import download_plan
from tests.tiny import tiny_config, write_config
from tests.unit.data.conftest import numbered_rows, write_split


@pytest.mark.parametrize(
    ("machines", "overrides", "expected"),
    [
        (1, [], ["each machine fetches 1.1 MB"]),
        (2, ["train_data.num_canonical_nodes=2"], ["each machine fetches 0.5 MB"]),
        (2, ["train_data.num_canonical_nodes=4", "train_data.cache_limit=1gb"], ["fetches 0.5 MB in each epoch"]),
        (2, [], ["each of 2 machines fetches all 1.1 MB", "num_canonical_nodes=2 makes it 0.5 MB"]),
    ],
)
def test_the_plan_says_what_each_machine_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: int, overrides: list[str], expected: list[str]
) -> None:
    write_split(tmp_path / "web" / "train", numbered_rows(20_000))
    write_split(tmp_path / "code" / "train", numbered_rows(20_000))  # 0.77 MB each
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))
    config = load_config(path, ["train_data={local: x, remote: 's3://b/x'}", *overrides])
    monkeypatch.setattr(downloads, "WORLD_SIZE", 4 * machines)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    specs = {name: StreamSpec(str(tmp_path / name), f"s3://b/{name}", "train") for name in ("web", "code")}
    (line,) = download_plan(config, specs, {"web": 3.0, "code": 0.4})  # read three times, fetched once
    assert all(part in line for part in expected), line
    here = {name: StreamSpec(spec.local, None, "train") for name, spec in specs.items()}
    assert download_plan(config, here, {"web": 1.0, "code": 1.0}) == []

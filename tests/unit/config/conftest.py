"""What the tests of the config share."""

from pathlib import Path

import pytest

from tests.tiny import tiny_config, write_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_config(tmp_path / "c.yaml", tiny_config(tmp_path))

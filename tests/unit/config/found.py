from pathlib import Path

import pytest

from moe.config import ConfigError, load_config


def errors(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, list(overrides))
    return error.value.errors

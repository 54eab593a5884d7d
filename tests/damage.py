"""Files damaged on purpose."""

import json
from pathlib import Path


def edit(path: Path, *keys: str | int, value: object) -> None:
    """Sets one place of a JSON file; `...` removes it."""
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content))

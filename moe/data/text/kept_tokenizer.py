"""A tokenizer as files that stand in a run folder and in each checkpoint, so that neither needs the place it came from.

- What is written is what transformers saves, in the form that its versions 4 and 5 both read.
- It is known again by its fingerprint: by what it makes of text, not by its name or path.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.ownership import remove_files
from moe.common.temporary import room_for
from moe.data.text.tokenizer import load_tokenizer, save_files, tokenizer_fingerprint

CONFIG_FILE = "tokenizer_config.json"


@dataclass(frozen=True)
class KeptTokenizer:
    """Attributes:
    fingerprint: as tokenizer_fingerprint.
    files: content by name; empty for a tokenizer that transformers cannot save and read back as it was.
    """

    fingerprint: str
    files: dict[str, bytes]


def keep_tokenizer(tokenizer: Any) -> KeptTokenizer:
    """The tokenizer as files, read back once: another fingerprint than before would be another tokenizer.

    Raises:
        InputError: there is no room for temporary files.
    """
    wanted = tokenizer_fingerprint(tokenizer)
    with room_for("the tokenizer's files"), tempfile.TemporaryDirectory(prefix="moe-tokenizer-") as name:
        folder = Path(name)
        save_tokenizer(tokenizer, folder)
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        found = tokenizer_fingerprint(load_tokenizer(name))
    return KeptTokenizer(wanted, files if found == wanted else {})


def save_tokenizer(tokenizer: Any, folder: Path, **settings: Any) -> None:
    """Its files, as transformers 4 and 5 both read them; `settings` replace those of tokenizer_config.json."""
    save_files(tokenizer, folder)
    path = folder / CONFIG_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") == "TokenizersBackend":  # what 5.x writes and 4.57 does not find
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    content.pop("name_or_path", None)  # a path of this machine
    path.write_text(json.dumps({**content, **settings}, indent=2) + "\n", encoding="utf-8")


def _free(folder: Path) -> Path:
    """A name beside `folder` under which nothing lies: what does is somebody's, or of a kill, and small."""
    count, aside = 1, folder.with_name(f".{folder.name}.tmp")
    while os.path.lexists(aside):
        count, aside = count + 1, folder.with_name(f".{folder.name}-{count + 1}.tmp")
    return aside


def write_kept(kept: KeptTokenizer, folder: Path) -> bool:
    """Writes the files to `folder` where that is not there yet, complete or not at all; it never replaces a file.

    Returns whether `folder` now holds this tokenizer.

    Raises:
        OSError: it cannot be written.
    """
    if not os.path.lexists(folder):
        aside = _free(folder)
        aside.mkdir(parents=True)
        try:
            for name, content in kept.files.items():
                (aside / name).write_bytes(content)
            os.replace(aside, folder)
        except BaseException:
            with suppress(OSError):
                remove_files(aside, kept.files)
            raise
    if all((folder / name).is_file() and (folder / name).read_bytes() == kept.files[name] for name in kept.files):
        return True
    try:
        return tokenizer_fingerprint(load_tokenizer(str(folder))) == kept.fingerprint
    except InputError:
        return False

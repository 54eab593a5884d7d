"""What a dataset's name stands for: a list of files.

- What lies on this machine is local.py's, which files of it are meant selection.py's; the hub's listing goes through
  the same choice.
- Files of the hub are known by the hub's own hashes: a commit that changes other files changes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from moe.common.errors import InputError
from moe.common.paths import expanded
from moe.common.units import printable
from moe.data.hub import dataset_listing
from moe.data.text.files import Source, SourceFile, kind_of
from moe.data.text.known import Lookup
from moe.data.text.local import local_source
from moe.data.text.selection import doubled_notes, kinds_note, select
from moe.data.text.tables_of_files import FileTable
from moe.data.text.walk import seen_of


def is_hub_name(name: str) -> bool:
    """Whether `name` is `organisation/dataset` and nothing on this machine; nor does it begin with a folder that is
    here: a path with a slip in it is no dataset of a stranger's.
    """
    pattern = r"([\w-][\w.-]*)/[\w-][\w.-]*"
    found = re.fullmatch(pattern, name)
    return found is not None and kind_of(name) is None and not Path(name).exists() and not Path(found[1]).is_dir()


def hub_source(name: str, *, config: str | None, split: str, revision: str | None) -> Source:
    """The files of a hub dataset's config and split. Raises InputError when the hub does not have them."""
    try:
        listing = dataset_listing(name, revision)
    except InputError as error:
        fix = "or give the path of a folder or file that exists on this machine"
        raise InputError(
            f"--dataset {name}" + (f" --revision {revision}" if revision else "") + f": {error}; {fix}"
        ) from error
    entries = {entry.path: entry for entry in listing.files}
    readme = listing.text_of(entries["README.md"]) if "README.md" in entries else None
    files = []
    names, passed = seen_of(sorted(entries), dataset=name)
    chosen = select(names, readme, dataset=name, config=config, split=split, passed=passed)
    for file in chosen.files:
        entry = entries[file]
        version = entry.sha256 or entry.blob_id or listing.commit
        path, kind = listing.url_path(entry), kind_of(file) or ""
        size = listing.size_of(entry)
        files.append(SourceFile(printable(file), path, kind, size, version, remote=True, listed=entry.listed))
    notes = [*chosen.notes, *kinds_note(file.name for file in files), *doubled_notes(files)]
    return Source(FileTable(files), listing.commit, passed + chosen.left_out, notes)


def resolve(
    *,
    dataset: tuple[str, ...],
    config: str | None,
    split: str,
    revision: str | None,
    outputs: tuple[Path, ...] = (),
    known: Lookup | None = None,
) -> Source:
    """The dataset's files, on this machine or on the hub.

    outputs: folders that are written, so never read. known: what was read of files here before, and need not be again.
    """
    for flag, value in (("--split", split), ("--config", config)):
        if value is not None and not value.strip():
            raise InputError(f"{flag} {value!r}: is not a name; give one, or leave {flag} out")
    if "/" in split:
        raise InputError(f"--split {split}: is not the name of a split, such as train; give a folder with --dataset")
    places = [expanded(name, "--dataset") for name in dataset]
    if len(dataset) == 1 and is_hub_name(dataset[0]):
        return hub_source(dataset[0], config=config, split=split, revision=revision)
    if revision is not None:
        raise InputError(f"--revision {revision}: {' '.join(dataset)} is on this machine; leave --revision out")
    paths = [Path(place) for place in places]
    return local_source(paths, config=config, split=split, outputs=outputs, known=known)

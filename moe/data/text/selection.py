"""Which files of a dataset are meant: a function of their names, the README's header, the config and the split.

- With configs in the README, its patterns decide. Without, a split is read from names, and only as far as that is no
  guess: files that name no split are `train`; a file is skipped for another split's name only where files of the split
  asked for are named too. `strangers-on-a-train` is a book among books.
- Letters' case means nothing, and a number may stand beside a mark: `Train.jsonl`, `test 1/`.
- A mark is strong where it stands for itself (`train/`, `train-00000.parquet`, `wiki.train.txt`) and weak inside of
  other words (`my-train.jsonl`), where it counts if every file has one.
- Licences and other files about files are skipped where there are data files. All that is skipped is returned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from moe.common.errors import InputError
from moe.common.units import printable
from moe.data.text.content import UNREADABLE
from moe.data.text.files import KNOWN, LeftOut, SourceFile, is_companion, kind_of
from moe.data.text.readme import choose_config, matcher, read_configs

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
BORDER = "[-_.0-9]"  # of a word in a name; a space is none: `Train Dreams` is a title
UNKNOWN_KIND = f"of a format that is not read (these are: {KNOWN})"
COMPANION = "about the data, not part of it"
OTHER_CONFIG = "of another --config or --split (README.md)"


@dataclass(frozen=True)
class Selection:
    """Names in order, what else there was, and lines about choices that nobody asked for."""

    files: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def select(
    names: list[str],
    readme: str | None,
    *,
    dataset: str,
    config: str | None,
    split: str,
    passed: Sequence[LeftOut] = (),
) -> Selection:
    """The files of `config` and `split` among `names`. passed: what else was met, reported where nothing is left.

    Raises InputError for a config or split that is not there, for names whose meaning would be a guess that loses
    files, and where nothing is left.
    """
    left_out = [LeftOut(name, UNKNOWN_KIND) for name in names if kind_of(name) is None]
    data = [name for name in names if kind_of(name) is not None]
    papers = [name for name in data if is_companion(name)]
    if len(papers) < len(data):
        data = [name for name in data if not is_companion(name)]
        left_out += [LeftOut(name, COMPANION) for name in papers]
    if configs := read_configs(readme, dataset=dataset):
        chosen = choose_config(configs, config, dataset=dataset)
        if split not in chosen.splits:
            there = ", ".join(map(printable, chosen.splits))
            raise InputError(
                f"--split {split}: no such split in config {printable(chosen.name)} of {dataset}; there are {there}"
            )
        fits = matcher(chosen.splits[split])
        found = Selection([name for name in data if fits(name)])
        if data and not found.files:
            raise InputError(
                f"--split {split}: no file of {dataset} is called {', '.join(chosen.splits[split][:5])}, as config "
                f"{printable(chosen.name)} of its README.md says; fix that, or rename README.md to use all files"
            )
        left_out += [LeftOut(name, OTHER_CONFIG) for name in data if not fits(name)]
    elif config not in (None, "default"):
        raise InputError(f"--config {config}: {dataset} names no configs in a README.md; leave --config out")
    else:
        found = by_names(data, split, dataset=dataset)
    if not found.files:
        raise InputError(
            f"--dataset {dataset}: no file that can be read ({KNOWN}) for {asked(config, split)}"
            + "".join(f"; {line}" for line in left_out_lines([*passed, *left_out]))
        )
    return Selection(found.files, left_out + found.left_out, found.notes)


def asked(config: str | None, split: str) -> str:
    return f"split {split}" if config is None else f"config {config}, split {split}"


def _strong(name: str, word: str) -> bool:
    *folders, base = name.lower().split("/")
    stem, word = base.rsplit(".", 1)[0], word.lower()
    own = [*(folder.rstrip(" 0123456789") for folder in folders), *base.split(".")]
    return word in own or re.split(BORDER, stem)[0].strip() == word


def _weak(name: str, word: str) -> bool:
    return re.search(rf"(^|/|{BORDER}){re.escape(word)}(/| \d|{BORDER}|$)", name, re.IGNORECASE) is not None


def by_names(data: list[str], split: str, *, dataset: str) -> Selection:
    """Files of a split where only their names can tell. Raises InputError as `select` does."""
    mine = bytes(_weak(name, split) for name in data)
    others = {
        name: word
        for name, own in zip(data, mine, strict=True)
        if not own
        for word in SPLITS
        if word != split and _weak(name, word)
    }
    there = ", ".join(dict.fromkeys(others.values()))
    fix = f"choose with --split, or give the files themselves (--dataset {dataset}/FILE ...)"
    if split != "train":
        if data and not any(mine):
            named = f"the names say {there}" if there else "no name says a split, so all are train"
            raise InputError(f"--split {split}: no file of {dataset} is named so; {named}")
        reason, marked = f"named for another split than {split}", list(zip(data, mine, strict=True))
        rest = [LeftOut(name, reason) for name, own in marked if not own]
        notes = [f"split {split}: {sum(mine)} of {len(data)} files, by their names"] if rest else []
        return Selection([name for name, own in marked if own], rest, notes)
    if not others:
        return Selection(data)
    whole = len(others) + sum(mine) == len(data)
    strong = all(_strong(name, word) for name, word in others.items())
    if not any(mine):
        if whole and strong:
            raise InputError(f"--split train: no file of {dataset} is named so; the names say {there}: {fix}")
        note = (
            f"{len(others)} of {len(data)} files are named like a split ({there}); no file is named train: all are used"
        )
        return Selection(data, notes=[note])
    if not whole and not (strong and any(own and _strong(name, split) for name, own in zip(data, mine, strict=True))):
        raise InputError(
            f"--split train: {sum(mine)} of {len(data)} files of {dataset} have 'train' in their names, {len(others)} "
            f"another split's name ({there}), the rest none: which are meant would be a guess; {fix}"
        )
    rest = [LeftOut(name, "named for another split than train") for name in others]
    kept = [name for name in data if name not in others]
    unnamed = f", {len(kept) - sum(mine)} of them name no split" if not whole else ""
    return Selection(kept, rest, [f"split train: {len(kept)} of {len(data)} files, by their names{unnamed}"])


def kinds_note(names: Iterable[str]) -> list[str]:
    """A line where files of several kinds are read together."""
    kinds = Counter(kind_of(name) or "" for name in names)
    if len({kind.split(".")[0] for kind in kinds}) < 2:
        return []
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return [f"files of several kinds are read together: {counts}"]


def hash64(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"))


def doubled_notes(files: Sequence[SourceFile]) -> list[str]:
    """A line where the same bytes, or a file and its packed form, are read twice: copies are not left out unasked."""
    known = np.flatnonzero(np.fromiter(map(_is_known, files), bool, len(files)))
    versions = np.fromiter((hash64(file.version) for file in files if _is_known(file)), np.uint64, len(known))
    _, first, which = np.unique(versions, return_index=True, return_inverse=True)
    others = first[which]
    again = np.flatnonzero(others != np.arange(len(others)))
    names = np.fromiter((hash64(file.name) for file in files), np.uint64, len(files))
    plain = np.fromiter((hash64(_unpacked(file.name)) for file in files), np.uint64, len(files))
    packed = np.flatnonzero((plain != names) & np.isin(plain, names))
    twice = ((files[known[i]].name, files[known[others[i]]].name) for i in again[:3])
    beside = ((files[i].name, _unpacked(files[i].name)) for i in packed[:3])
    return [
        f"read twice: {count} {what}: {', '.join(f'{one} ({other})' for one, other in pairs)}" + ", ..." * (count > 3)
        for count, pairs, what in (
            (len(again), twice, "with the size and sampled blocks of another file"),
            (len(packed), beside, "packed, beside the unpacked file"),
        )
        if count
    ]


def _is_known(file: SourceFile) -> bool:
    """Whether its version tells its bytes."""
    return bool(file.size) and (file.listed is not None if file.remote else not file.version.startswith(UNREADABLE))


def _unpacked(name: str) -> str:
    return re.sub(r"\.(gz|zst)$", "", name)


def left_out_lines(left_out: list[LeftOut]) -> list[str]:
    """A line for each reason: how many, and the first few by name."""
    by_reason: dict[str, list[str]] = {}
    for one in left_out:
        by_reason.setdefault(one.reason, []).append(one.name)
    return [
        f"skipped: {len(names)} {reason}: {', '.join(map(printable, names[:3]))}" + ", ..." * (len(names) > 3)
        for reason, names in sorted(by_reason.items())
    ]

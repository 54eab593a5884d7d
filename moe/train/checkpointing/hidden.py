"""Remote checkpoints that no start takes again: damaged ones, and those that the run went back behind.

Their manifest gets another name, which is quick whatever their size. Where the run saves that step anew, their files
move to a folder of their own first: an upload over them would leave neither.
"""

from __future__ import annotations

from moe.common.s3 import RemoteFolder
from moe.train.checkpointing.checkpoints import MANIFEST

WHY = ("left-behind", "set-aside")


def hidden_manifests(folder: str) -> set[str]:
    """The names that a manifest in `folder` has where it is hidden."""
    return {f"{folder}/{why}-{MANIFEST}" for why in WHY}


def hide(store: RemoteFolder, folder: str, why: str) -> None:
    """why: one of WHY. Raises RemoteError."""
    store.rename(f"{folder}/{MANIFEST}", f"{folder}/{why}-{MANIFEST}")


def make_way(store: RemoteFolder, folder: str) -> None:
    """Before a checkpoint is uploaded to `folder`: what is hidden there moves to <why>-<folder>, its manifest last, so
    that a move that broke off goes on. Raises RemoteError.
    """
    names = list(store.list(f"{folder}/"))
    hidden = [name for name in names if name in hidden_manifests(folder)]
    if f"{folder}/{MANIFEST}" in names:  # written over by an earlier version: nothing but that manifest is left of it
        store.delete(hidden)
        return
    for manifest in hidden:
        why = manifest.removeprefix(f"{folder}/").removesuffix(f"-{MANIFEST}")
        place = _free(store, f"{why}-{folder}")
        for name in names:
            if name not in hidden:
                store.rename(name, f"{place}/{name.removeprefix(f'{folder}/')}")
        store.rename(manifest, f"{place}/{MANIFEST}")
        names = hidden


def _free(store: RemoteFolder, folder: str) -> str:
    """`folder`, or where that holds a checkpoint already the first with a number behind it that does not."""
    count, place = 1, folder
    while f"{place}/{MANIFEST}" in store.list(f"{place}/"):
        count += 1
        place = f"{folder}-{count}"
    return place

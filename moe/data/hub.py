"""Datasets on the hub:

which files a config names, at one commit. huggingface_hub speaks to the server, HF_ENDPOINT included.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from moe.data.sources import Source, SourceFile, kind_of, select_files
from moe.errors import InputError


def is_hub_name(name: str) -> bool:
    """Whether `name` is `organisation/dataset` and nothing on this machine."""
    return (
        not Path(name).exists()
        and kind_of(name) is None
        and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    )


def hub_source(name: str, *, config: str | None, split: str, revision: str | None) -> Source:
    """The files of a hub dataset's config and split.

    Raises InputError when the hub does not have it or cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        info: Any = HfApi().dataset_info(name, revision=revision, files_metadata=True)
        try:
            readme = Path(hf_hub_download(name, "README.md", repo_type="dataset", revision=info.sha)).read_text(
                encoding="utf-8"
            )
        except EntryNotFoundError:
            readme = None
    except RevisionNotFoundError as error:
        raise InputError(f"--revision {revision}: {name} has no such branch, tag or commit on {endpoint}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"--dataset {name}: {endpoint} has no such dataset, or it needs a login (hf auth login); "
            "for a folder on this machine give a path that exists"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(
            f"--dataset {name}: {endpoint} cannot be reached ({type(error).__name__}); check the network"
        ) from error
    siblings = {s.rfilename: s for s in info.siblings}
    names = select_files(sorted(siblings), readme, dataset=name, config=config, split=split)
    if not names:
        raise InputError(
            f"--dataset {name}: no parquet, jsonl, jsonl.gz or txt file for config {config}, split {split}"
        )
    files = []
    for file in names:
        kind = kind_of(file)
        assert kind is not None
        version = siblings[file].lfs.sha256 if siblings[file].lfs else siblings[file].blob_id
        files.append(
            SourceFile(file, f"datasets/{name}@{info.sha}/{file}", kind, siblings[file].size or 0, version or info.sha)
        )
    return Source(files, info.sha)

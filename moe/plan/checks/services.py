"""What is not on this machine: folders on s3, W&B."""

from __future__ import annotations

import netrc
import os
import uuid
from pathlib import Path
from urllib.parse import urlparse

from moe.common.errors import InputError
from moe.common.s3 import RemoteError, RemoteFolder
from moe.config import Config
from moe.plan.checks.result import Report, Result


def check_remotes(config: Config, report: Report) -> list[Result]:
    """Writes, reads and removes a small file in an s3 run folder; looks for the data in remote folders."""
    from moe.train.inputs import streams_of

    found = []
    if "://" in config.save_folder:
        report(f"writing to and reading from {config.save_folder} ...")
        found.append(_round_trip(config.save_folder))
    remotes = {
        spec.remote: None
        for data in (config.train_data, config.eval_data)
        for spec in streams_of(data).values()
        if spec.remote is not None
    }
    for url in remotes:
        if url.startswith("s3://"):
            report(f"reading from {url} ...")
            found.append(_readable(url))
    return found or [Result("remote", "pass", "nothing on s3")]


def _round_trip(url: str) -> Result:
    folder, name, content = RemoteFolder(url), f"moe-check-{uuid.uuid4().hex}", b"moe check"
    try:
        folder.write(name, content)
        try:
            if folder.read(name) != content:
                return Result(
                    "remote", "fail", f"save_folder ({url}): what was written was read back as something else"
                )
        finally:
            folder.delete([name])
    except (RemoteError, InputError) as error:
        return Result("remote", "fail", f"save_folder: {error}")
    return Result("remote", "pass", f"{url}: written, read and removed")


def _readable(url: str) -> Result:
    try:
        there = RemoteFolder(url).read("meta.json") is not None
    except (RemoteError, InputError) as error:
        return Result("remote", "fail", f"data: {error}")
    if not there:
        return Result("remote", "fail", f"data: {url} has no meta.json; correct the address, or convert first")
    return Result("remote", "pass", f"{url}: read")


def check_wandb(config: Config) -> Result:
    """Whether W&B can start: off, offline, or a key is there (it is not tried)."""
    settings = config.loggers.wandb
    if settings is None:
        return Result("W&B", "pass", "off (loggers.wandb is null)")
    mode = os.environ.get("WANDB_MODE", settings.mode)
    if mode != "online":
        return Result("W&B", "pass", f"{mode}; `wandb sync` uploads later" if mode == "offline" else mode)
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    if os.environ.get("WANDB_API_KEY"):
        return Result("W&B", "pass", f"project {settings.project}, key in WANDB_API_KEY (not tried)")
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        known = netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if known:
        return Result("W&B", "pass", f"project {settings.project}, login for {host} in {file} (not tried)")
    return Result(
        "W&B",
        "fail",
        f"no login for {host}; run `wandb login`, set WANDB_API_KEY, or set loggers.wandb.mode=offline",
    )

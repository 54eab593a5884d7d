"""Where a conversion writes: a folder on this machine or one on a bucket, behind the same few calls.

- A file is there complete or not at all; so is a folder that `adopt` makes, once its mark is there.
- Files are made in a scratch folder on this machine and then move in. On the disk that is a rename.
- What has moved in survives a power cut: it is fsynced before it gets its name, a mark behind all that it speaks of,
  and the name after that.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from moe.common.durable import aside_of, make_folder, sync, sync_file, sync_folder, sync_tree
from moe.common.errors import InputError

SHARD_SCRATCH = "shard"  # what the merge calls its own, which is removed after a kill


class Folder(Protocol):
    """Files by name, `/` between the parts of it. Picklable. Raises InputError where the place cannot be used."""

    def __truediv__(self, name: str) -> Folder: ...

    def beside(self, suffix: str) -> Folder:
        """The folder with this name and `suffix`."""

    def is_empty(self) -> bool:
        """Whether there is nothing in it, or no such folder."""

    def sizes(self) -> dict[str, int]:
        """Every file below it, with its bytes."""

    def read(self, name: str) -> bytes | None:
        """The file's content; None where there is none."""

    def open(self, name: str) -> BinaryIO | None:
        """The file, to be read from its front and to be closed; None where there is none."""

    def write(self, name: str, content: bytes | Iterator[bytes]) -> None:
        """Make or replace a file, of bytes or pieces of them."""

    def scratch(self, label: str) -> AbstractContextManager[Path]:
        """An empty folder on this machine, to make files in; gone afterwards."""

    def put(self, path: Path, name: str) -> None:
        """Take a file out of a scratch folder."""

    def adopt(self, made: Path, name: str, mark: str) -> None:
        """Take a scratch folder with all it holds as `name`, where the file `mark` says that it is complete."""

    def copy(self, source: Folder, name: str, own_name: str) -> None:
        """The file `name` of a folder of the same kind, under another name: a hard link, or a copy on the server. On
        this machine its name is safe once the next file is `put` here.
        """

    def delete(self, names: list[str] | None = None) -> None:
        """Remove these files, or all of it."""


class LocalFolder:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    def beside(self, suffix: str) -> LocalFolder:
        return LocalFolder(self.path.with_name(self.path.name + suffix))

    def is_empty(self) -> bool:
        if os.path.exists(self.path) and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; a folder is needed")
        return not self.path.exists() or not any(self.path.iterdir())

    def sizes(self) -> dict[str, int]:
        files = (Path(folder) / name for folder, _, names in os.walk(self.path) for name in names)
        return {p.relative_to(self.path).as_posix(): p.stat().st_size for p in files if p.exists()}  # no dangling link

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{self.path / name}: cannot be read ({error.strerror})") from None

    def open(self, name: str) -> BinaryIO | None:
        try:
            return open(self.path / name, "rb")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{self.path / name}: cannot be read ({error.strerror})") from None

    def write(self, name: str, content: bytes | Iterator[bytes]) -> None:
        path = self.path / name
        make_folder(path.parent)
        aside = aside_of(path)
        try:
            with open(aside, "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                sync(file)
            os.rename(aside, path)
            sync_folder(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    @contextmanager
    def scratch(self, label: str) -> Iterator[Path]:
        make_folder(self.path)
        aside = Path(tempfile.mkdtemp(prefix=f".{label}.", dir=self.path))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def put(self, path: Path, name: str) -> None:
        sync_file(path)
        os.rename(path, self.path / name)
        sync_folder(self.path)

    def adopt(self, made: Path, name: str, mark: str) -> None:
        sync_tree(made, last=mark)
        try:
            os.rename(made, self.path / name)
            sync_folder(self.path)
        except OSError as error:  # another process made the same, in the same moment
            if (self.path / name / mark).exists():
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise InputError(
                f"{self.path / name} holds no {mark}, as after a power cut; remove it and run the same command again"
            ) from None

    def copy(self, source: Folder, name: str, own_name: str) -> None:
        assert isinstance(source, LocalFolder)
        make_folder(self.path)
        try:
            os.link(source.path / name, self.path / own_name)
        except OSError:  # a file system without hard links; or it is there, and may be torn
            with self.scratch(SHARD_SCRATCH) as aside:
                shutil.copyfile(source.path / name, aside / SHARD_SCRATCH)
                sync_file(aside / SHARD_SCRATCH)
                os.rename(aside / SHARD_SCRATCH, self.path / own_name)

    def delete(self, names: list[str] | None = None) -> None:
        if names is None:
            shutil.rmtree(self.path, ignore_errors=True)
        for name in names or []:
            (self.path / name).unlink(missing_ok=True)

"""`callbacks` of the yaml -> objects: imports the classes that it names, for a start and for `moe check` alone.

Decisions:
- A class is found as Python finds it, the working directory last: a file there never stands in front of a package that
  is installed. Where both have the name, neither is guessed.
- All that can be wrong with an entry is one message that names it: no module, no class, no Callback, wrong arguments,
  an error of its own while it is imported or made.
- What acts at the wrong place is refused: loggers act after the checkpoint is saved, algorithms before all callbacks.
- Random numbers that are drawn meanwhile are no part of the run's (moe/train/callbacks/own_random.py).
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from composer import Algorithm, Callback
from composer.loggers import LoggerDestination

from moe.common.errors import InputError
from moe.config.callbacks import refused
from moe.train.callbacks.own_random import own_random

FOLDER = "callbacks"  # in a run folder: the sources


@dataclass(frozen=True)
class UserClass:
    """A callback, and the file that its class stands in.

    Attributes:
        key: its class as the yaml names it; `#2` behind it where that stands there a second time.
        sha256: of the source; None, as `source`, where there is none to read.
    """

    key: str
    callback: Callback
    module: str
    source: bytes | None
    sha256: str | None

    @property
    def file(self) -> str:
        """The source's name in the run folder: another content is another file, none is written over."""
        return f"{FOLDER}/{self.module}-{str(self.sha256)[:12]}.py"


def load_user_classes(entries: Sequence[dict[str, Any]], *, seed: int = 0) -> list[UserClass]:
    """Imports and makes what `callbacks` of a config names, in its order.

    Raises:
        InputError: an entry that cannot be used.
    """
    found: list[UserClass] = []
    for number, entry in enumerate(entries):
        name = entry["class"]
        where = f"callbacks[{number}].class ({name})"
        with own_random(seed, name, number):
            kind = _class_of(name, where)
            arguments = {key: copy.deepcopy(value) for key, value in entry.items() if key != "class"}
            callback = _made(kind, arguments, where)
        source = _source_of(kind)
        sha256 = None if source is None else hashlib.sha256(source).hexdigest()
        count = 1 + sum(other.key.partition("#")[0] == name for other in found)
        key = name if count == 1 else f"{name}#{count}"
        found.append(UserClass(key, callback, kind.__module__, source, sha256))
    return found


def _class_of(name: str, where: str) -> type[Callback]:
    module_name, _, class_name = name.rpartition(".")
    module = _imported(module_name, where)
    kind = getattr(module, class_name, None)
    if kind is None:
        raise InputError(f"{where}: {module_name} has no {class_name}; it has {_classes(module)}")
    if not isinstance(kind, type):
        raise InputError(f"{where}: is no class; name a subclass of composer.Callback")
    reason = next((why for base in kind.mro() if (why := refused(base.__module__, base.__name__))), None)
    if reason is None and issubclass(kind, Algorithm):
        reason = "is an algorithm of Composer's, which acts before all callbacks; make it a Callback"
    elif reason is None and not issubclass(kind, Callback):
        reason = "is no subclass of composer.Callback"
    elif issubclass(kind, LoggerDestination):
        reason = "is a logger, which acts after the checkpoint is saved; log from a Callback, and see loggers"
    if reason:
        raise InputError(f"{where}: {reason}")
    return kind


def _imported(name: str, where: str) -> ModuleType:
    here = Path.cwd()
    _refuse_two(name.partition(".")[0], here, where)
    if str(here) not in sys.path:
        sys.path.append(str(here))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{where}: there is no module {error.name}, neither in {here} nor among the installed packages; "
                "start from the folder that holds it, or install it"
            ) from None
        raise InputError(f"{where}: {name} cannot be imported: {_described(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{where}: {name} cannot be imported: {_described(error)}") from error


def _refuse_two(top: str, here: Path, where: str) -> None:
    """Raises InputError where the working directory and the installed packages both have a module of this name."""
    own = next((path for path in (here / f"{top}.py", here / top / "__init__.py") if path.is_file()), None)
    if own is None:
        return
    known = sys.modules.get(top)
    if known is not None:
        spec = getattr(known, "__spec__", None)
    elif top in sys.stdlib_module_names:
        spec = importlib.util.find_spec(top)
    else:
        spec = PathFinder.find_spec(top, [place for place in sys.path if Path(place).resolve() != here.resolve()])
    origin = getattr(spec, "origin", None)
    if spec is not None and origin is not None and Path(origin).resolve() != own.resolve():
        raise InputError(f"{where}: {top} is both {own} and an installed module ({origin}); rename your own")


def _made(kind: type[Callback], arguments: dict[str, Any], where: str) -> Callback:
    if kind.__init__ is Callback.__init__:  # which takes anything, and drops it
        takes = inspect.Signature()
    else:
        try:
            takes = inspect.signature(kind)
        except ValueError:  # it tells none
            takes = inspect.signature(lambda **arguments: None)
    try:
        takes.bind(**arguments)
    except TypeError as error:
        names = ", ".join(str(one) for one in takes.parameters.values())
        raise InputError(f"{where}: {error}; it takes {names or 'no arguments'}") from None
    try:
        return kind(**arguments)
    except (Exception, SystemExit) as error:
        raise InputError(f"{where}: cannot be made with {arguments or 'no arguments'}: {_described(error)}") from error


def _described(error: BaseException) -> str:
    """`ValueError: its words (my_file.py, line 12)`, the line being the last one that was run."""
    words = " ".join(str(error).split())[:1000]
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {words}"  # which name the line
    passed = ("<frozen", importlib.__file__, __file__)
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(passed)]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {words}{place}"


def _classes(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Callback)]
    return ", ".join(name for name in names if name != "Callback") or "no callbacks"


def _source_of(kind: type) -> bytes | None:
    try:
        file = inspect.getsourcefile(kind)
        return None if file is None else Path(file).read_bytes()
    except (OSError, TypeError):
        return None

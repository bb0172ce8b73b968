"""Where storage cases write: what ``--target`` names, read in one place, and what several of them make of the cases.

A target is a text all the way (plan, record, channel): the absolute path of a folder, or the URL of an object store.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from clustergauge import object_url
from clustergauge.errors import UsageError
from clustergauge.model import Scalar

AXIS = "target"
"""The axis that cases get where there are several targets.  With one they have none, so that their ids are what they always were:
runs of one target compare, wherever it was mounted."""


def parse(given: Sequence[str], local: bool = True) -> tuple[str, ...]:
    """The targets in the order given.  ``local``: on this machine, where they must be there; else each node has its own.

    Folders go by the names that they were given (`plain`): ids compare between nodes on which a symbolic link leads elsewhere.
    Where it leads is in records (`real`).  Raises `UsageError` for what is no folder to write to and no object store, or the same
    one twice.
    """
    found: dict[object, str] = {}
    for text in given:
        url = object_url.is_url(text)
        name = str(object_url.parse(text)) if url else _name(text, local)
        same = _identity(text, name) if local and not url else name
        if same in found:
            raise UsageError(f"--target {name if url else text}: the same {'store' if url else 'folder'} as {found[same]}")
        found[same] = name
    return tuple(found.values())


def params_for(params: Mapping[str, Scalar], target: str, targets: Sequence[str]) -> dict[str, Scalar]:
    """The parameters of a case on one of the targets."""
    return {**params, AXIS: target} if len(targets) > 1 else dict(params)


def fitting(targets: Sequence[str], objects: bool) -> tuple[str, ...]:
    """Of the targets, those that are object stores, or those that are not."""
    return tuple(target for target in targets if object_url.is_url(target) == objects)


def own_params(params: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The parameters that the case's probe knows: without the target, which its context tells it."""
    return {name: value for name, value in params.items() if name != AXIS}


def plain(path: Path) -> str:
    """The name of a folder without ``.``, ``..`` and needless slashes.  A link before a ``..`` is followed, as by the kernel."""
    found = Path("/")
    for part in path.absolute().parts[1:]:
        found = Path(os.path.realpath(found)).parent if part == ".." else found / part
    return str(found)


def real(target: Path) -> str:
    """The folder itself, where its name holds symbolic links; else empty."""
    found = os.path.realpath(target).encode(errors="replace").decode()
    return found if found != str(target) else ""


def _name(text: str, local: bool) -> str:
    """The target's name in ids and records."""
    if not text:
        raise UsageError("--target: an empty name")
    name = plain(Path(text)) if text.isprintable() else text
    if not name.isprintable():
        raise UsageError(f"--target {text!a}: its name cannot be printed, and it stands in ids of cases")
    if not local and ".." in Path(text).parts:
        raise UsageError(f"--target {text}: name it without '..', which may lead elsewhere on each node")
    return name


def _identity(text: str, path: str) -> tuple[int, int]:
    """What two names of one folder have in common.  Raises `UsageError` where nothing can be written."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise UsageError(f"--target {text}: no such folder") from None
    except OSError as error:
        raise UsageError(f"--target {text}: {(error.strerror or str(error)).lower()}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"--target {text}: not a folder")
    if number := refusal(Path(path)):
        raise UsageError(f"--target {text}: {'its file system is read-only' if number == errno.EROFS else 'not writable'}")
    return found.st_dev, found.st_ino


def refusal(folder: Path) -> int:
    """The number of the error that making a file in it would meet, as far as that shows without one; 0 if nothing forbids it."""
    if os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return 0
    return errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES

"""System calls on names from compiled code and from Python: the same is done, seen and told of what fails."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import pytest

from clustergauge import compiled
from storage_io import names as calling
from storage_io.errors import StorageError
from tests.on_disk import mounted, names, needs_root

OWN = Path("/proc/self/fd")
BOTH = pytest.mark.parametrize("kind", [calling.Compiled, calling.FromPython])


def done(kind, op, *todo):
    """The calls, when all of these were made."""
    calls = kind(op)
    calls.load([tuple(map(str, each)) for each in todo])
    calls.run()
    assert calls.done == len(todo)
    return calls


def failed(kind, op, *todo):
    """What is told of the first that fails, and how many were done before it."""
    calls = kind(op)
    calls.load([tuple(map(str, each)) for each in todo])
    with pytest.raises(StorageError) as caught:
        calls.run()
    return str(caught.value), caught.value.errno, calls.done


@BOTH
def test_each_call_does_what_its_name_says(tmp_path, kind):
    one, two, three = (tmp_path / name for name in ("one", "zwei ü", "3" * 200))
    before = len(names(OWN))
    done(kind, "create", [one], [two])
    assert names(tmp_path) == ["one", "zwei ü"]
    assert [path.stat().st_mode & 0o777 for path in (one, two)] == [0o600 & ~_umask()] * 2
    assert done(kind, "stat", [two], [one], [tmp_path]).inodes() == [path.stat().st_ino for path in (two, one, tmp_path)]
    done(kind, "open", [one], [two], [one])
    done(kind, "rename", [one, three], [two, one])
    assert names(tmp_path) == sorted(["one", three.name])
    done(kind, "unlink", [one], [three])
    assert names(tmp_path) == []
    assert len(names(OWN)) == before


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@BOTH
def test_the_first_that_fails_is_named_and_what_comes_after_is_not_done(tmp_path, kind):
    there, gone, more = (tmp_path / name for name in ("there", "gone", "more"))
    there.touch()
    missing = f"{gone}: no such file or directory"
    assert failed(kind, "stat", [there], [gone], [there]) == (f"cannot stat {missing}", errno.ENOENT, 1)
    assert failed(kind, "open", [gone], [there]) == (f"cannot open {missing}", errno.ENOENT, 0)
    assert failed(kind, "create", [more], [there], [gone]) == (f"cannot create {there}: file exists", errno.EEXIST, 1)
    assert failed(kind, "rename", [more, more], [gone, there], [more, gone]) == (f"cannot rename {missing}", errno.ENOENT, 1)
    assert failed(kind, "unlink", [more], [gone], [there]) == (f"cannot unlink {missing}", errno.ENOENT, 1)
    (tmp_path / "link").symlink_to(there)
    assert failed(kind, "open", [tmp_path / "link"])[1] == errno.ELOOP  # as a file that somebody put there
    assert names(tmp_path) == ["link", "there"]


@needs_root
@BOTH
def test_what_a_file_system_refuses_is_told(tmp_path, kind):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/data").touch()
    with mounted(tmp_path / "ro", "--bind", "-o", "ro", str(tmp_path / "real")) as target:
        for op, to in (("create", [target / "new"]), ("unlink", [target / "data"]), ("rename", [target / "data", target / "b"])):
            assert failed(kind, op, to) == (f"cannot {op} {to[0]}: read-only file system", errno.EROFS, 0)
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=8m,nr_inodes=40", "none") as target:
        said, number, count = failed(kind, "create", *([target / f"data-{n}"] for n in range(100)))
        assert re.fullmatch(rf"cannot create {target}/data-\d+: no space left on device", said)
        assert (number, len(names(target))) == (errno.ENOSPC, count)
        assert said.endswith(f"/data-{count}: no space left on device")


@BOTH
def test_a_sample_may_have_more_calls_than_are_made_at_once_and_any_number(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(calling, "AT_ONCE", 7)
    paths = [tmp_path / f"{n}" for n in range(23)]
    done(kind, "create", *([path] for path in paths))
    assert done(kind, "stat", *([path] for path in paths)).inodes() == [path.stat().st_ino for path in paths]
    paths[15].unlink()
    assert failed(kind, "open", *([path] for path in paths))[2] == 15
    done(kind, "open")
    done(kind, "open", *([path] for path in paths[:14]))


def test_where_nothing_can_be_compiled_python_calls(monkeypatch):
    assert isinstance(calling.calls("stat"), calling.Compiled)
    assert isinstance(calling.calls("list"), calling.FromPython)
    with monkeypatch.context() as patch:
        real = compiled.libc
        patch.setattr(compiled, "libc", lambda name: real(f"no_such_{name}"))
        assert isinstance(calling.calls("stat"), calling.FromPython)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "PROCESSORS", ("one of tomorrow",))
        assert isinstance(calling.calls("stat"), calling.FromPython)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert isinstance(calling.calls("stat"), calling.FromPython)

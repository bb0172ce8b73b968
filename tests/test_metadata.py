"""The metadata probe on real folders: every operation does what it says, is undone, and whatever is odd about a name is found."""

import contextlib
import errno
import signal

import pytest

from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Skip, Wrong
from clustergauge.world import Serial
from storage_io import layout, names as calling, workspace
from storage_io.errors import StorageError
from storage_io.metadata import LEAST, OPS, metadata, prepare
from tests.on_disk import context, end, measuring, mounted, names, needs_root, slow

FILES = 70


@pytest.fixture(params=["compiled", "Python"])
def engine(request, monkeypatch):
    """Who makes the calls."""
    if request.param == "Python":
        monkeypatch.setattr(calling.compiled, "PROCESSORS", ())
    return request.param


@contextlib.contextmanager
def prepared(target, op, layout="many", files=FILES):
    ctx = context(target, 1e-6)
    work = prepare(ctx, op, layout, files, spare=0)
    try:
        yield work, ctx
    finally:
        work.close()
    assert names(target) == []


def population(target):
    return sorted(p.name for p in target.glob(".clustergauge-*/folder-*/*"))


EXPECTED = {"create": FILES, "unlink": FILES - LEAST}


@pytest.mark.parametrize("layout", ["one", "many"])
@pytest.mark.parametrize("op", OPS)
def test_an_operation_is_done_verified_undone_and_all_is_removed(tmp_path, op, layout, engine):
    with prepared(tmp_path, op, layout) as (work, ctx):
        by = "from compiled code" if engine == "compiled" and op != "list" else "from Python"
        assert ctx.settings["engine"] == f"system calls {by}, 1 thread"
        assert ctx.settings["folders"] == (1 if layout == "one" else 3)
        assert work.steps == (FILES if op == "list" else LEAST)
        assert work.workload.ios == 1
        for _ in range(4):
            work.reset()
            if op == "create":
                assert len(population(tmp_path)) == FILES - LEAST
            work.run()
            assert len(population(tmp_path)) == EXPECTED.get(op, FILES)
            work.check()
        moved = [name for name in population(tmp_path) if int(name[5:]) >= FILES]
        assert bool(moved) == (op == "rename")


def test_a_case_is_measured_as_a_worker_does(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "require_space", lambda *_: None)
    params = {"op": "rename", "layout": "one", "files": 100}
    job = Job("x", "storage_io.metadata", "metadata", params, "cpu", budget_s=0.1, seed=1, target=str(tmp_path))
    outcome = execute(job, metadata, Serial(), tmp_path, lambda _: None)
    assert outcome.status == "ok", outcome.reason
    assert outcome.measurement.iterations_per_sample == outcome.settings["operations_per_sample"]
    assert names(tmp_path) == []


@pytest.mark.parametrize("op", OPS)
def test_a_name_too_few_or_too_many_is_found(tmp_path, op):
    with prepared(tmp_path, op) as (work, _):
        work.reset()
        folder = next(tmp_path.glob(".clustergauge-*/folder-1"))
        (folder / "data-999").touch()
        work.run()
        with pytest.raises(Wrong, match=r"folder-1 holds \d+ names, expected \d+; not as they must be: .*data-999"):
            work.check()
        (folder / "data-999").unlink()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("op", ["create", "unlink", "rename", "stat"])
def test_an_operation_that_did_nothing_is_caught(tmp_path, op):
    with prepared(tmp_path, op) as (work, _):
        work.reset()
        with pytest.raises(Wrong, match=f"^0 of {LEAST} operations were done$"):
            work.check()


@pytest.mark.parametrize("op", ["create", "unlink", "rename"])
def test_a_call_that_only_pretends_is_caught(tmp_path, op, engine, monkeypatch):
    with prepared(tmp_path, op) as (work, _):
        calls = work.run.__self__._calls
        monkeypatch.setattr(calls, "_call" if engine == "Python" else "_calls", lambda _path, _first=0, until=0, *_: until)
        work.reset()
        work.run()
        with pytest.raises(Wrong, match=r"holds \d+ names, expected \d+; not as they must be"):
            work.check()


@pytest.mark.usefixtures("engine")
def test_a_file_that_is_another_file_is_caught(tmp_path):
    with prepared(tmp_path, "stat") as (work, _):
        work.reset()
        path = next(iter(tmp_path.glob(f".clustergauge-*/folder-*/data-{work.run.__self__._chosen[0]}")))
        keep = path.rename(path.parent.parent / "data-0")
        path.touch()
        work.run()
        with pytest.raises(Wrong, match=rf"{path} has inode \d+, expected \d+"):
            work.check()
        keep.unlink()


@pytest.mark.usefixtures("engine")
def test_a_vanished_file_is_one_sentence(tmp_path):
    with prepared(tmp_path, "stat") as (work, _):
        work.reset()
        path = next(iter(tmp_path.glob(f".clustergauge-*/folder-*/data-{work.run.__self__._chosen[3]}")))
        path.unlink()
        with pytest.raises(StorageError, match=f"^cannot stat {path}: no such file or directory$"):
            work.run()


@needs_root
def test_inodes_that_run_out_are_refused_and_if_they_still_do_it_is_one_sentence(tmp_path, monkeypatch):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=8m,nr_inodes=60", "none") as target:
        with pytest.raises(Skip, match=r"inodes free, 73 \+ 2|inodes free, 75 are needed"):
            prepare(context(target), "stat", "many", FILES, spare=0)
        monkeypatch.setattr(workspace, "require_space", lambda *_: None)
        with pytest.raises(StorageError, match=r"^cannot create .*/data-\d+: no space left on device$") as caught:
            prepare(context(target), "stat", "many", FILES, spare=0)
        assert caught.value.errno == errno.ENOSPC
        assert names(target) == []


def test_what_would_take_too_long_is_refused_early_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "stopwatch", slow(0.5))
    with pytest.raises(Skip, match=r"^creating 1000 files would take 500 s \(at most 10 s; take a smaller --set files=…\)$"):
        prepare(context(tmp_path), "stat", "one", 1000, spare=0)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_many_folders_go_with_a_terminated_worker_and_are_swept_after_a_killed_one(tmp_path, number):
    with measuring(tmp_path, "storage_io.metadata", "metadata", op="unlink", layout="many", files=200) as process:
        end(process, number)
    assert len(names(tmp_path)) == (number == signal.SIGKILL)
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []


def test_strange_names_inside_an_inner_folder_keep_it(tmp_path):
    space = workspace.Workspace(tmp_path, 0, spare=0)
    space.folder(0).mkdir()
    (space.folder(0) / "precious").touch()
    (space.path / "folder-1").symlink_to(tmp_path)
    with pytest.raises(StorageError, match=r"^cannot remove"):
        space.close()
    assert (space.folder(0) / "precious").exists()
    assert (space.path / "folder-1").is_symlink()

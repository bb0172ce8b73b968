"""Writing a run folder: what is there once a call returns, and what is left when the disk, the process or the caller fails."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings

from clustergauge import store
from clustergauge.errors import UsageError
from clustergauge.store import RunFolder, StoreError, load, reopen, verify
from tests.run_folders import RUN_ID, a_machine, a_record, a_run, files_of, fill, in_memory
from tests.strategies import filled_runs

FINISHED = "2026-11-23T06:31:00Z"


def sums_agree(path):
    """Whether coreutils agree with our checksums."""
    return subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=path, check=False).returncode == 0


def open_files():
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


# -- one run from beginning to end


def test_a_run_is_created_filled_finished_and_read_back(tmp_path):
    run, machine, records = a_run(), a_machine(), [a_record(n) for n in range(3)]
    folder = RunFolder.create(tmp_path / "results", run)
    folder.write_machine(machine)
    for record in records:
        folder.append(record)
    ended = msgspec.structs.replace(run, finished=FINISHED)
    folder.finish(ended)
    loaded = load(tmp_path / "results" / RUN_ID)
    assert (loaded.run, loaded.machines, loaded.records, loaded.notes) == (ended, {"m1": machine}, records, [])
    assert verify(folder.path) == []
    assert sums_agree(folder.path)


@given(filled_runs())
@settings(max_examples=60, deadline=None)
def test_whatever_a_sound_run_writes_is_read_back_unchanged(filled):
    with in_memory() as parent:
        folder = RunFolder.create(parent, filled.run)
        folder.write_machine(filled.machine)
        half = len(filled.records) // 2
        for record in filled.records[:half]:
            folder.append(record)
        folder.close()
        folder = reopen(folder.path)
        assert folder.repaired == ""
        for record in filled.records[half:]:
            folder.append(record)
        folder.finish(filled.run)
        loaded = load(folder.path)
        assert loaded.run == filled.run
        assert loaded.machines == {filled.machine.machine_id: filled.machine}
        assert loaded.records == filled.records
        assert verify(folder.path) == []


def test_a_record_and_its_checksum_are_on_disk_before_append_returns(tmp_path, monkeypatch):
    run = a_run()
    folder = RunFolder.create(tmp_path, run)
    folder.write_machine(a_machine())
    done, write, sync = [], os.write, os.fsync
    name = {(folder.path / n).stat().st_ino: n for n in ("records.jsonl", "records.sha256")}
    monkeypatch.setattr(os, "write", lambda file, data: done.append(("write", name[os.fstat(file).st_ino])) or write(file, data))
    monkeypatch.setattr(os, "fsync", lambda file: done.append(("fsync", name[os.fstat(file).st_ino])) or sync(file))
    folder.append(a_record())
    both = [(step, file) for file in ("records.sha256", "records.jsonl") for step in ("write", "fsync")]
    assert done == both
    folder.close()


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_it_all(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    path = fill(tmp_path)
    assert len(load(path).records) == 3
    assert verify(path) == []


READER = """
import sys
from pathlib import Path
from clustergauge.store import load
loaded = load(Path(sys.argv[1]))
print(len(loaded.records), *loaded.notes)
"""


def test_a_reader_meets_a_run_at_work_as_far_as_it_is_whole(tmp_path):
    folder = RunFolder.create(tmp_path, a_run())
    folder.write_machine(a_machine())
    folder.append(a_record(0))
    with (folder.path / "records.sha256").open("ab") as sums:
        sums.write(b"0" * 65)  # the writer is about to append
    with (folder.path / "records.jsonl").open("ab") as records:
        records.write(b'{"schema')
    said = subprocess.run([sys.executable, "-c", READER, folder.path], capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == (f"1 still being written by pid {os.getpid()}\n", "")
    assert load(folder.path).notes == []  # the writer need not be told
    assert verify(folder.path) == []
    folder.close()


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"run_id": "another"}, "run_id 'another' is of another run"),
        ({"launch": 9}, "is not planned in run.json"),
        ({"device": "cuda:0"}, "is not planned in run.json"),
        ({"params": {"ns": 100.0}}, "does not follow from its probe and params"),
        ({"params": {"ns": "100"}}, "is not planned in run.json"),
        ({"machine_id": "m2"}, "machine_id 'm2' has no description"),
        ({"started": "yesterday"}, "started 'yesterday' is not a time"),
        ({"measurement": None}, "status is ok but there is no measurement"),
        ({"settings": {"x": float("nan")}}, "settings['x'] is nan"),
        ({"settings": {"x\x1b": 1}}, "key 'x�' is not printable"),
        ({"settings": {"x": 10**30}}, "settings['x'] is beyond"),
        ({"settings": {"x": [1]}}, "settings"),
        ({"status": "fine"}, "status"),
        ({"ranks": 0}, "ranks is 0"),
        ({"reason": "x" * 100_001}, "a text of 100001 characters (at most 100000): 'xxx"),
    ],
)
def test_an_unsound_record_is_refused_and_nothing_is_written(tmp_path, changes, told):
    with RunFolder.create(tmp_path, a_run()) as folder:
        folder.write_machine(a_machine())
        folder.append(a_record(0))
        before = files_of(folder.path)
        with pytest.raises(ValueError) as caught:
            folder.append(a_record(**({"launch": 1} | changes)))
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
        assert files_of(folder.path) == before
        folder.append(a_record(1))  # and it goes on
        assert len(load(folder.path).records) == 2


def test_a_second_record_of_one_case_is_refused_after_reopening_too(tmp_path):
    with reopen(fill(tmp_path, 2, finished=False)) as folder, pytest.raises(ValueError, match="launch 1, already has a record"):
        folder.append(a_record(1))


def test_a_record_before_its_machine_is_refused(tmp_path):
    with RunFolder.create(tmp_path, a_run()) as folder, pytest.raises(ValueError, match="'m1' has no description"):
        folder.append(a_record())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"run_id": "../up"}, "run_id '../up' cannot name a folder"),
        ({"run_id": ""}, "run_id '' cannot name a folder"),
        ({"planned": a_run(1).planned * 2}, r"planned[1] repeats 'spin/ns=100' on cpu:0, launch 0"),
        ({"started": ""}, "started '' is not a time"),
    ],
)
def test_an_unsound_run_is_the_users_mistake_and_leaves_nothing(tmp_path, changes, told):
    with pytest.raises(UsageError) as caught:
        RunFolder.create(tmp_path / "results", a_run(**changes))
    assert str(caught.value).startswith(f"cannot begin this run: {told}")
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_never_made_twice_nor_where_none_can_be(tmp_path):
    path = fill(tmp_path)
    before = files_of(path)
    with pytest.raises(UsageError, match=f"cannot make run folder {path}: File exists"):
        RunFolder.create(tmp_path, a_run())
    assert files_of(path) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot make run folder .*/file/.*: \S+/file is a file, no folder$"):
        RunFolder.create(tmp_path / "file", a_run())
    with pytest.raises(UsageError, match=r": \S+/file is a file, no folder$"):
        RunFolder.create(tmp_path / "file" / "below", a_run())


def test_a_folder_that_cannot_be_filled_is_not_left_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    before_fds = open_files()
    with pytest.raises(UsageError, match=r"^cannot make run folder \S+: No space left on device: run\.json is not written$"):
        RunFolder.create(tmp_path, a_run())
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before_fds


def test_a_folder_whose_files_cannot_be_opened_is_let_go_of(tmp_path, monkeypatch):
    path = fill(tmp_path / "old", finished=False)
    opening, before = os.open, open_files()

    def refuse(name, *rest):
        if str(name).endswith("records.sha256") and rest[0] & os.O_APPEND:
            raise PermissionError(13, "Permission denied", str(name))
        return opening(name, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=r"cannot make run folder .*Permission denied"):
        RunFolder.create(tmp_path / "new", a_run())
    with pytest.raises(UsageError, match=r"records\.sha256: Permission denied"):
        reopen(path)
    assert open_files() == before
    monkeypatch.undo()
    reopen(path).close()


def test_an_update_may_not_leave_out_what_has_a_record_nor_become_another_run(tmp_path):
    with RunFolder.create(tmp_path, a_run()) as folder:
        folder.write_machine(a_machine())
        folder.append(a_record(1))
        with pytest.raises(ValueError, match="no longer plans spin/ns=100 on cpu:0, launch 1"):
            folder.update(a_run(1))
        with pytest.raises(ValueError, match="run other cannot be written to the folder of"):
            folder.update(a_run(run_id="other"))
        folder.update(a_run(8))
        folder.append(a_record(7))
    assert [r.launch for r in load(folder.path).records] == [1, 7]


def test_a_closed_folder_takes_nothing(tmp_path):
    folder = RunFolder.create(tmp_path, a_run())
    folder.close()
    folder.close()
    for write in (lambda: folder.append(a_record()), lambda: folder.update(a_run()), lambda: folder.write_log("a", "b")):
        with pytest.raises(ValueError):
            write()


def test_two_writers_are_one_too_many(tmp_path):
    path = fill(tmp_path, finished=False)
    with reopen(path):
        with pytest.raises(UsageError) as caught:
            reopen(path)
        assert str(caught.value) == f"{path} is being written by pid {os.getpid()}"
    reopen(path).close()


# -- control characters


def test_what_could_steer_a_terminal_is_neutralised(tmp_path):
    evil = "a\x1b[2Jb\r\nc\u202ed\x9b"
    with RunFolder.create(tmp_path, a_run(command=[evil])) as folder:
        folder.write_machine(a_machine(os=evil))
        folder.append(a_record(status="error", reason=evil))
        log = folder.write_log(f"../{evil}", "one\x1b[31m\ttwo\nthree\x07\n")
    loaded = load(folder.path)
    tame = "a�[2Jb  c�d�"
    assert (loaded.run.command, loaded.machines["m1"].os, loaded.records[0].reason) == ([tame], tame, tame)
    assert log.startswith("logs/")
    assert (folder.path / log).parent == folder.path / "logs"
    assert (folder.path / log).read_text() == "one�[31m        two\nthree�\n"
    assert all(text.decode().replace("\n", "").isprintable() for text in files_of(folder.path).values())


def test_logs_whose_names_look_alike_stay_apart(tmp_path):
    with RunFolder.create(tmp_path, a_run()) as folder:
        names = {folder.write_log(name, "text") for name in ("a/b", "a_b", "a b", "é", "", "x" * 500)}
    assert len(names) == 6
    assert all((folder.path / name).read_text() == "text\n" for name in names)


# -- interruption


WRITER = """
import sys
from pathlib import Path
from clustergauge.store import load, reopen
from tests.run_folders import a_record
folder = reopen(Path(sys.argv[1]))
print(len(load(folder.path).records), folder.repaired, flush=True)
for launch in range(len(load(folder.path).records), 100_000):
    folder.append(a_record(launch))
    print(launch + 1, flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_at_most_the_record_in_flight(tmp_path):
    path = fill(tmp_path, 0, finished=False, run=a_run(5000))
    chance, kept = random.Random(7), 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True, bufsize=1) as writer:
            began = int(writer.stdout.readline().split()[0])
            assert began in (kept, kept + 1)  # the last one before may have been on disk, unacknowledged
            stop, kept = began + chance.randrange(1, 40), began
            for line in writer.stdout:
                kept = int(line)
                if kept >= stop:
                    break
            time.sleep(chance.random() * 2e-3)  # into the middle of an append
            writer.send_signal(signal.SIGKILL)
            kept = max([kept, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        with reopen(path) as folder:
            launches = [r.launch for r in load(path).records]
            assert launches in (list(range(kept)), list(range(kept + 1)))
            assert folder.repaired == "" or "records" in folder.repaired
        kept = len(launches)
    assert kept >= 6
    assert verify(path) == []


def ends_of(path):
    """Where the last record and the last checksum begin."""
    records, sums = ((path / name).read_bytes() for name in ("records.jsonl", "records.sha256"))
    return records, records.rindex(b"\n", 0, -1) + 1, sums, len(sums) - 65


def test_cut_at_every_byte_of_the_last_record_the_folder_is_reopened_without_it():
    with in_memory() as parent:
        path = fill(parent, 2, finished=False)
        records, last, sums, last_sum = ends_of(path)
        for size in range(last, len(records)):
            (path / "records.jsonl").write_bytes(records[:size])
            (path / "records.sha256").write_bytes(sums)
            if size == last:
                unwritten = f"interrupted while writing: {path}/records.sha256 line 2: has no record in records.jsonl"
                assert load(path).notes == [unwritten]
            else:
                with pytest.raises(UsageError) as caught:
                    load(path)
                assert str(caught.value).startswith(f"{path}/records.jsonl line 2: cut short (run_suite.py run --resume")
            with reopen(path) as folder:
                assert "line 2" in folder.repaired
                folder.append(a_record(1))
            assert (path / "records.jsonl").read_bytes() == records
            assert (path / "records.sha256").read_bytes() == sums
        for size in range(last_sum + 1, len(sums)):
            (path / "records.jsonl").write_bytes(records[:last])
            (path / "records.sha256").write_bytes(sums[:size])
            assert len(load(path).records) == 1
            reopen(path).close()
            assert (path / "records.sha256").read_bytes() == sums[:last_sum]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_record_cut_after_the_run_ended_is_damage_and_no_interruption(tmp_path, interrupted):
    """What ends in good order is summed up, an interrupted run too: going on would bless whatever else was changed."""
    path = fill(tmp_path, 3, run=a_run(interrupted=interrupted))
    records, last, _, _ = ends_of(path)
    for size in (last + 1, len(records) - 1):
        (path / "records.jsonl").write_bytes(records[:size])
        told = f"{path}/records.jsonl line 3: cut short after the run had ended: take the folder again from where it was measured"
        assert verify(path)[0] == told
        for reader in (load, reopen):
            with pytest.raises(UsageError) as caught:
                reader(path)
            assert str(caught.value) == told
    (path / "records.jsonl").write_bytes(records)
    assert verify(path) == []


def test_reopening_a_finished_run_makes_it_unfinished_until_it_ends_again(tmp_path):
    path = fill(tmp_path, 2)
    with reopen(path):
        pass  # and then the power went
    loaded = load(path)
    assert (loaded.run.finished, loaded.notes, verify(path)) == ("", [], [])
    with reopen(path) as folder:
        folder.append(a_record(2))
        folder.finish(msgspec.structs.replace(loaded.run, finished=FINISHED))
    assert load(path).run.finished == FINISHED
    assert sums_agree(path)


def test_what_is_not_just_cut_short_is_not_reopened_and_not_touched(tmp_path):
    path = fill(tmp_path, 3, finished=False)
    records = (path / "records.jsonl").read_bytes()
    (path / "records.jsonl").write_bytes(records.replace(b"1.5e-7", b"1.6e-7", 1))
    before = files_of(path)
    before_fds = open_files()
    with pytest.raises(UsageError, match=r"records\.jsonl line 1: does not match its checksum"):
        reopen(path)
    assert files_of(path) == before
    assert open_files() == before_fds


def test_an_interrupt_at_any_step_of_an_append_leaves_whole_records(tmp_path, monkeypatch):
    """Ctrl-C may come at any system call; what was not yet whole is gone, and the next append is whole."""
    for step in range(12):
        parent = tmp_path / str(step)
        folder = RunFolder.create(parent, a_run())
        folder.write_machine(a_machine())
        folder.append(a_record(0))
        with monkeypatch.context() as patch:
            calls = iter(range(100))

            def maybe(real, calls=calls, step=step):
                def call(*arguments):
                    if next(calls) == step:
                        raise KeyboardInterrupt
                    return real(*arguments)

                return call

            for name in ("write", "fsync", "ftruncate"):
                patch.setattr(os, name, maybe(getattr(os, name)))
            try:
                folder.append(a_record(1))
                kept = True
            except KeyboardInterrupt:
                kept = False
        assert kept == (step >= 4)
        folder.append(a_record(2))
        folder.close()
        assert [r.launch for r in load(folder.path).records] == ([0, 1, 2] if kept else [0, 2])
        assert load(folder.path).notes == []


# -- a full disk


@contextmanager
def room_for(size):
    """No file of this process grows beyond ``size`` bytes: as on a full disk, a write is taken in part, then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_midway_through_a_record_leaves_a_readable_folder(tmp_path):
    folder = RunFolder.create(tmp_path, a_run())
    folder.write_machine(a_machine())
    folder.append(a_record(0))
    size = (folder.path / "records.jsonl").stat().st_size
    for extra in (0, 1, size // 2, size - 1):
        with room_for(size + extra), pytest.raises(StoreError) as caught:
            folder.append(a_record(1))
        assert str(caught.value) == (f"{folder.path}: File too large: the record of spin/ns=100 is not kept, the 1 before it are")
        assert (folder.path / "records.jsonl").stat().st_size == size
        assert (folder.path / "records.sha256").stat().st_size == 65
        loaded = load(folder.path)
        assert ([r.launch for r in loaded.records], loaded.notes) == ([0], [])
    folder.append(a_record(1))  # somebody made room
    folder.finish(a_run(finished=FINISHED))
    assert [r.launch for r in load(folder.path).records] == [0, 1]


def test_a_disk_too_full_for_the_checksum_leaves_a_readable_folder(tmp_path):
    path = fill(tmp_path, 3, finished=False)
    folder = reopen(path)
    with room_for(3 * 65 + 10), pytest.raises(StoreError, match="the 3 before it are"):
        folder.append(a_record(3))
    assert (path / "records.sha256").stat().st_size == 3 * 65
    folder.close()
    assert len(load(path).records) == 3


def test_a_disk_too_full_for_the_end_of_the_run_keeps_what_was_there(tmp_path):
    path = fill(tmp_path, 3, finished=False)
    folder = reopen(path)
    with room_for(10), pytest.raises(StoreError, match=r"run\.json is not written"):
        folder.finish(a_run(finished=FINISHED))
    loaded = load(path)
    assert (len(loaded.records), loaded.run.finished, loaded.notes) == (3, "", [])
    assert not (path / ".tmp").exists()
    with room_for(10), pytest.raises(UsageError, match=r"run\.json is not written"):
        reopen(path)
    reopen(path).close()


def test_a_folder_that_vanished_is_told_as_the_disks_fault(tmp_path):
    folder = RunFolder.create(tmp_path, a_run())
    (folder.path / "machines").rmdir()
    with pytest.raises(StoreError, match="SHA256SUMS is not written"):
        folder.finish(a_run(finished=FINISHED))


# -- finding a run


def test_run_ids_sort_by_time_and_differ():
    ids = {store.new_run_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(id_[8] == id_[15] == "-" and len(id_) == 20 for id_ in ids)


def test_a_run_is_found_by_path_id_start_and_latest(tmp_path, monkeypatch):
    results = tmp_path / "results"
    ids = ["20261123-063000-aaaa", "20261123-063000-abcd", "20261124-000000-0000", "zzz"]
    for number, run_id in enumerate(ids):
        RunFolder.create(results, a_run(run_id=run_id)).close()
        os.utime(results / run_id / "run.json", (1000 - number, 1000 - number))
    (results / "20269999-not-a-run").mkdir()

    def found(text):
        return store.find_run(text, results).name

    assert found("latest") == "20261124-000000-0000"
    assert found("20261124") == "20261124-000000-0000"
    assert found("20261123-063000-aaaa") == "20261123-063000-aaaa"
    assert found("20261123-063000-ab") == "20261123-063000-abcd"
    assert found("z") == "zzz"
    assert store.find_run(str(results / "zzz"), tmp_path) == results / "zzz"
    monkeypatch.chdir(results)
    assert store.find_run("./zzz", tmp_path) == Path("zzz")
    with pytest.raises(UsageError) as caught:
        found("20261123")
    assert str(caught.value) == "'20261123' could be 20261123-063000-abcd, 20261123-063000-aaaa"


def test_of_two_runs_in_one_second_the_one_written_last_is_the_latest(tmp_path):
    for number, run_id in enumerate(["20261123-063000-aaaa", "20261123-063000-bbbb"]):
        RunFolder.create(tmp_path, a_run(run_id=run_id)).close()
        os.utime(tmp_path / run_id / "run.json", (1000 - number, 1000 - number))
    assert store.find_run("latest", tmp_path).name == "20261123-063000-aaaa"


def test_a_path_that_is_no_run_is_not_looked_for_among_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, told in (("/no/such", "no run folder '/no/such'"), ("runs/x", f"no run folder 'runs/x' in {tmp_path}")):
        with pytest.raises(UsageError) as caught:
            store.find_run(text, tmp_path / "results")
        assert str(caught.value) == told


@pytest.mark.parametrize("text", ["latest", "x", "", "\x1b[2J", "a\0b", "x" * 5000])
def test_no_such_run_is_one_line_that_lists_those_there_are(tmp_path, text):
    for number in range(7):
        RunFolder.create(tmp_path, a_run(run_id=f"run{number}")).close()
    with pytest.raises(UsageError) as caught:
        store.find_run(text, tmp_path)
    told = str(caught.value)
    assert told.endswith(f" in {tmp_path} (run6, run5, run4, run3, run2, and 2 more)")
    assert told.isprintable()
    with pytest.raises(UsageError, match=r"it holds no run"):
        store.find_run(text, tmp_path / "nowhere")

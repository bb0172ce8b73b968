"""How much memory new work can have: made-up trees of machines and control groups, and who must heed it."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from clustergauge import memory
from clustergauge.memory import available_bytes
from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from collectives import buffers as collective_buffers
from kernels import buffers
from storage_io import memory as storage_memory
from storage_io.sequential import prepare
from tests.on_disk import ROOT
from tests.trees import write

MIB = 1 << 20
FREE = "MemTotal:  2000000 kB\nMemFree:  900 kB\nMemAvailable:    1024000 kB\n"
NONE_V1 = "9223372036854771712\n"


def tree(root, own, groups=(), meminfo=FREE):
    write(root, "proc/meminfo", meminfo)
    write(root, "proc/self/cgroup", own)
    for name, content in groups:
        write(root, f"sys/fs/cgroup/{name}", f"{content}\n")


def v2(folder, limit, used, files=0, name="memory.max"):
    stat = f"anon 1\nfile {9 * MIB}\ninactive_file {files // 2}\nactive_file {files - files // 2}\nslab_reclaimable 5"
    return [(f"{folder}/{name}", limit), (f"{folder}/memory.current", used), (f"{folder}/memory.stat", stat)]


def v1(folder, limit, used, files=0):
    stat = f"cache 7\ninactive_file 1\nactive_file 1\ntotal_inactive_file {files // 2}\ntotal_active_file {files - files // 2}"
    folder = f"memory/{folder}"
    return [
        (f"{folder}/memory.limit_in_bytes", limit),
        (f"{folder}/memory.usage_in_bytes", used),
        (f"{folder}/memory.stat", stat),
    ]


@pytest.mark.parametrize(
    ("own", "groups", "mib"),
    [
        ("0::/job\n", [], 1000),
        ("0::/job\n", v2("job", "max", 5), 1000),
        ("0::/job\n", v2("job", 400 * MIB, 100 * MIB), 300),
        ("0::/job\n", v2("job", 4000 * MIB, 100 * MIB), 1000),  # the machine has less
        ("0::/job/step\n", v2("job/step", "max", 1) + v2("job", 200 * MIB, 50 * MIB), 150),  # a group above
        ("0::/job/step\n", v2("job/step", 100 * MIB, MIB) + v2("job", 200 * MIB, 150 * MIB), 50),  # its other members use it
        ("0::/\n", v2(".", 400 * MIB, 100 * MIB), 300),  # a container that sees its own group as the top
        ("0::/docker/abc\n", v2(".", 400 * MIB, 100 * MIB), 300),
        ("0::/job\n", v2("job", 400 * MIB, 390 * MIB, files=200 * MIB), 210),  # files give way
        ("0::/job\n", v2("job", 400 * MIB, 10 * MIB, files=200 * MIB), 400),  # and never make it more than the limit
        ("0::/job\n", v2("job", 400 * MIB, 401 * MIB), 0),
        ("0::/job\n", v2("job", 300 * MIB, 100 * MIB, name="memory.high"), 200),
        ("0::/job\n", [("job/memory.max", 400 * MIB)], 400),  # usage unreadable: no more than that is known
        ("4:memory:/job\n0::/\n", v1("job", 400 * MIB, 100 * MIB), 300),
        ("4:memory:/job\n", v1("job", 400 * MIB, 390 * MIB, files=200 * MIB), 210),
        ("4:cpu,memory:/docker/abc\n", v1(".", 400 * MIB, 100 * MIB), 300),
        ("4:memory:/job\n", v1("job", NONE_V1, 100 * MIB), 1000),
        ("4:memory:/job\n0::/x\n", v1("job", 400 * MIB, 0) + v2("x", 300 * MIB, 0), 300),
        ("4:cpu:/job\n", v1("job", 400 * MIB, 0), 1000),
        ("4:memory:/../../etc\n", v1("etc", 400 * MIB, 0), 400),  # never climbs out of the tree
        ("0::/job\n", [("job/memory.max", "lots")], 1000),
        ("broken\n", v2("job", MIB, 0), 1000),
        ("", [], 1000),
    ],
)
def test_the_least_that_the_kernel_and_the_control_groups_leave(tmp_path, own, groups, mib):
    tree(tmp_path, own, groups)
    assert available_bytes(tmp_path) == mib * MIB


def test_unknown_is_not_zero_and_a_group_is_known_without_the_kernel(tmp_path):
    assert available_bytes(tmp_path) is None
    tree(tmp_path, "0::/job\n", meminfo="MemTotal:  2000 kB\nMemAvailable: lots\n")
    assert available_bytes(tmp_path) is None
    tree(tmp_path, "0::/job\n", v2("job", 400 * MIB, 100 * MIB), meminfo="MemTotal:  2000 kB\n")
    assert available_bytes(tmp_path) == 300 * MIB


def test_no_limit_is_not_known_as_a_large_one(tmp_path):
    tree(tmp_path, "4:memory:/job\n", v1("job", NONE_V1.strip(), 100 * MIB), meminfo="MemTotal:  2000 kB\n")
    assert available_bytes(tmp_path) is None


@given(*[st.integers(0, 1 << 62)] * 3)
def test_never_negative_never_more_than_the_limit_or_the_machine(tmp_path_factory, limit, used, files):
    root = tmp_path_factory.mktemp("tree")
    tree(root, "0::/job\n", v2("job", limit, used, files))
    left = available_bytes(root)
    assert 0 <= left <= min(1000 * MIB, limit)
    assert left == 1000 * MIB or limit >= 1 << 60 or left == max(0, limit - max(0, used - files))


def test_this_machine_tells():
    assert 0 < available_bytes() < 1 << 60


# -- a skip, where the kernel would end the process


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A container with 100 MiB left on a machine with 1000."""
    tree(tmp_path / "tree", "0::/\n", v2(".", 400 * MIB, 300 * MIB))
    available = functools.partial(available_bytes, tmp_path / "tree")
    monkeypatch.setattr(memory, "available_bytes", available)
    monkeypatch.setattr(storage_memory, "available", available)


def test_kernels_skip_what_a_container_cannot_hold(full):
    assert buffers.free_bytes("cpu") == 100 * MIB
    buffers.require(80 * MIB, "cpu")
    with pytest.raises(Skip, match=r"^needs 81MiB of memory, 100MiB is free on cpu$"):
        buffers.require(81 * MIB, "cpu")


def test_collectives_skip_what_a_container_cannot_hold(full):
    world = Serial()
    world.local_size = 2
    context = Context(world=world, device="cpu", seed=1, scratch=Path())
    collective_buffers.require(context, "gloo", 25 * MIB)
    with pytest.raises(Skip, match=r"^2 ranks need about 104 MiB of memory, 100 MiB are available$"):
        collective_buffers.require(context, "gloo", 26 * MIB)


def test_collectives_skip_where_nothing_is_left(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    with pytest.raises(Skip, match="0 MiB are available"):
        collective_buffers.require(Context(world=Serial(), device="cpu", seed=1, scratch=Path()), "gloo", 8)


def test_storage_skips_what_a_container_cannot_hold(full, tmp_path):
    context = Context(world=Serial(), device="cpu", seed=1, scratch=tmp_path, target=tmp_path)
    with pytest.raises(Skip, match=r"^a buffer of 1MiB, and 16MiB to verify it, need more memory than the 100 MiB available "):
        prepare(context, "write", 1, 64 * MIB, spare=0)


def test_a_limit_of_the_process_is_heeded(tmp_path):
    tree(tmp_path, "")
    limits = "Limit                     Soft Limit           Units\nMax address space         {}  unlimited  bytes\n"
    for soft, size, mib in (
        (500 * MIB, "102400 kB", 400),
        (50 * MIB, "102400 kB", 0),
        (5000 * MIB, "1 kB", 1000),
        (500 * MIB, "?", 500),
    ):
        write(tmp_path, "proc/self/limits", limits.format(soft))
        write(tmp_path, "proc/self/status", f"Name:\tx\nVmSize:\t  {size}\n")
        assert available_bytes(tmp_path) == mib * MIB
    write(tmp_path, "proc/self/limits", limits.format("unlimited"))
    assert available_bytes(tmp_path) == 1000 * MIB


def test_a_limit_set_here_is_seen():
    code = "from clustergauge.memory import available_bytes; print(available_bytes())"
    done = subprocess.run(["prlimit", f"--as={400 * MIB}", sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stderr, done.returncode) == ("", 0)
    assert 0 < int(done.stdout) < 400 * MIB

"""What the kernel says of a folder, its cache and the memory: from planted texts and from this machine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from storage_io import memory, mounts
from storage_io.datafile import DataFile
from storage_io.errors import StorageError
from storage_io.evidence import DeviceBytes, cached_bytes, process_io
from storage_io.mounts import Mount, describe, mount_of, parse_mountinfo
from tests.on_disk import mounted, needs_root

MOUNTINFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
23 22 0:21 / /proc rw,nosuid - proc proc rw
40 22 259:3 /sub /data rw,noatime master:2 propagate_from:1 - xfs /dev/nvme0n1p3 rw,attr2
41 22 0:50 / /data/my\040share rw,relatime - nfs4 server:/ex\134port rw,vers=4.2,addr=10.0.0.1
42 22 0:51 / /database rw - tmpfs none rw,size=1k
43 40 0:52 / /data rw - overlay overlay rw,lowerdir=LOWER,upperdir=/u
broken line
44 22 0:53 - short
""".replace("LOWER", "/very/long" * 20)


def test_mounts_are_parsed_as_documented():
    found = parse_mountinfo(MOUNTINFO)
    assert [m.point for m in found] == ["/", "/proc", "/data", "/data/my share", "/database", "/data"]
    assert found[2] == Mount("259:3", "/data", "xfs", "/dev/nvme0n1p3", "rw,noatime,attr2")
    assert found[3].source == "server:/ex\\port"


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("/", "ext4"),
        ("/datum", "ext4"),
        ("/data", "overlay"),
        ("/data/x", "overlay"),
        ("/data/my share/x", "nfs4"),
        ("/database/x", "tmpfs"),
        ("/data2/x", "ext4"),
    ],
)
def test_the_longest_mount_point_wins_and_of_equals_the_last(path, type_):
    assert mount_of(path, parse_mountinfo(MOUNTINFO)).type == type_
    assert mount_of(path, []) is None


@given(st.text() | st.from_regex(r"[0-9]+ [0-9]+ [0-9:]+ / /\S* rw - \S* \S* \S*"))
def test_no_text_upsets_the_parser(text):
    for mount in parse_mountinfo(text):
        assert mount.device


def test_a_folder_is_described(tmp_path, monkeypatch):
    said = describe(tmp_path)
    assert said["free_bytes"] > 0
    assert said["fs_type"] in {m.type for m in parse_mountinfo(Path("/proc/self/mountinfo").read_text())}
    monkeypatch.setattr(
        mounts, "_read", lambda path: MOUNTINFO.replace("/data ", f"{tmp_path} ") if "mountinfo" in str(path) else ""
    )
    said = describe(tmp_path)
    assert said["fs_type"] == "overlay"
    assert said["fs_options"] == "rw,upperdir=/u"  # no list of layers
    monkeypatch.setattr(mounts, "_read", lambda _: "")
    assert set(describe(tmp_path)) == {"free_bytes"}  # unknown is absent


def test_a_disk_that_is_a_file_or_memory_is_told_whatever_lies_on_it(tmp_path):
    def made(name, **files):
        for path, text in files.items():
            file = tmp_path / name / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        return tmp_path / name

    file = made("loop0", loop__dio="0\n", loop__backing_file="/images/a b\n")
    direct = made("loop1", loop__dio="1\n", loop__backing_file="/images/c\n")
    memory_disk, disk = made("zram0"), made("nvme0n1")
    part = made("loop0/loop0p1", partition="1\n")
    volume = made("dm-0")
    assert mounts.cached(file) == "loop0 is the file /images/a b, through the page cache"
    assert mounts.cached(memory_disk) == "zram0 is memory"
    assert [mounts.cached(other) for other in (direct, disk, volume, tmp_path / "gone")] == [""] * 4
    (volume / "slaves").mkdir()
    for name, under in (("a", disk), ("b", part)):
        (volume / "slaves" / name).symlink_to(under)
    assert mounts.cached(volume) == mounts.cached(file)


@needs_root
@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4")
def test_a_folder_on_a_loop_device_says_so(tmp_path):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with mounted(tmp_path / "there", "-o", "loop", str(image)) as folder:
        assert str(describe(folder)["device_cached"]).endswith(f" is the file {image}, through the page cache")


def test_memory_is_read_or_unknown():
    assert memory.meminfo("MemAvailable", "MemTotal:  10 kB\nMemAvailable:    4 kB\n") == 4096
    assert memory.meminfo("MemAvailable", "MemTotal:  10 kB\nMemAvailable: lots\n") is None
    assert memory.meminfo("MemTotal") > 0
    assert memory.meminfo("AnonHugePages", "7f00-7f01 ---p 00000000 00:00 0  [rollup]\nAnonHugePages:   2048 kB\n") == 2 << 20


def test_cached_bytes_are_seen_and_dropped(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file:
        assert cached_bytes(file.fileno(), 1 << 20) == 1 << 20
    file = DataFile(tmp_path / "new", 1 << 20)
    file.go_buffered("for this test")
    file.write_at(0, memoryview(os.urandom(1 << 20)))
    left = file.drop()
    file.close()
    assert left == (1 << 20 if describe(tmp_path)["fs_type"] in ("tmpfs", "ramfs") else 0)
    assert cached_bytes(-2, 4096) is None


def test_a_path_that_is_taken_is_left_as_it_is(tmp_path):
    (tmp_path / "taken").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("taken", "link"):
        with pytest.raises(StorageError, match=f"^cannot create {tmp_path / name}: file exists$"):
            DataFile(tmp_path / name, 4096)
    assert (tmp_path / "taken").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_device_bytes_add_up_over_runs(monkeypatch):
    counters = iter([(100, 10), (150, 10), (1000, 0), (1007, 3), None, (9, 9)])
    monkeypatch.setattr("storage_io.evidence.process_io", lambda *_: next(counters))
    totals = {}
    device = DeviceBytes(totals)
    device.mark()
    device.settle(64, 0)
    assert totals == {"read": 50, "written": 0, "asked_read": 64, "asked_written": 0}
    device.mark()
    device.settle(64, 1)
    assert totals == {"read": 57, "written": 3, "asked_read": 128, "asked_written": 1}
    device.mark()  # unreadable this time: not counted, and not asked for either
    device.settle(64, 1)
    assert totals["asked_read"] == 128


def test_settling_without_a_mark_adds_nothing(monkeypatch):
    totals = {}
    DeviceBytes(totals).settle(64, 0)
    assert totals == {}
    assert process_io() is None or re.fullmatch(r"\(\d+, \d+\)", str(process_io()))

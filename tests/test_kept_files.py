"""What libraries leave for the case of a hang: found, asked for, kept as it stands, and never read as anything but bytes."""

from __future__ import annotations

import os

from clustergauge import messages as m, watch
from clustergauge.model import Place
from clustergauge.pool import Pool, Rank
from clustergauge.store import RunFolder
from clustergauge.team import Team
from tests import made

PICKLE = b"\x80\x04cos\nsystem\n."  # what must never be loaded


def test_only_what_nccl_and_torch_write_is_kept_and_only_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "FILE_BYTES", 8)
    (tmp_path / "nccl-debug.host.1").write_bytes(b"0123456789")
    (tmp_path / "trace-rank-0").write_bytes(PICKLE[:8])
    (tmp_path / "key").write_bytes(b"secret")
    (tmp_path / "trace-empty").touch()
    (tmp_path / "nccl-link").symlink_to(tmp_path / "key")
    os.mkfifo(tmp_path / "trace-pipe-0.pipe")
    assert watch.kept_files(tmp_path) == {"nccl-debug.host.1": b"23456789", "trace-rank-0": PICKLE[:8]}


def test_as_many_files_as_a_node_may_keep(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "MOST_FILES", 2)
    for rank in range(4):
        (tmp_path / f"trace-rank-{rank}").write_bytes(b"x")
    assert list(watch.kept_files(tmp_path)) == ["trace-rank-0", "trace-rank-1"]


def test_monitors_that_listen_are_told_to_dump(tmp_path):
    """By their pipes, as torch's monitor thread makes them; one that nobody reads holds nothing up."""
    for rank in (0, 1):
        os.mkfifo(tmp_path / f"trace-pipe-{rank}.pipe")
    listening = os.open(tmp_path / "trace-pipe-1.pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        watch.ask_for_dumps(tmp_path)
        assert os.read(listening, 10) == b"1\n"
    finally:
        os.close(listening)


def test_the_run_folder_keeps_the_bytes(tmp_path):
    folder = RunFolder.create(tmp_path, made.run([]))
    kept = folder.write_file("../all_reduce/backend=nccl-0-n1.trace-rank-0", PICKLE)
    assert kept.startswith("logs/all_reduce_backend=nccl-0-n1.trace-rank-0-")
    assert kept.endswith(".bin")
    assert (folder.path / kept).read_bytes() == PICKLE
    folder.close()


class Told:
    """A node that says what it was given to say."""

    def __init__(self, *said: m.FromAgent) -> None:
        self.said = list(said)

    def hear(self, until: float) -> m.FromAgent | None:
        return self.said.pop(0) if self.said else None


def test_the_first_that_goes_is_to_blame_whoever_is_heard_of_first():
    """How one ended takes longer to find out than how its victim did."""
    victim = m.WorkerGone(11, 1, "measure", "killed by SIGTERM")
    told = Told(m.Closed(12), m.Closed(11), victim, m.WorkerGone(12, 2, "measure", "exited with 0"))
    pool = Pool(told, "n", None, [], ranks={p: Rank(p, p - 10, f"n{p - 10}") for p in (10, 11, 12)})  # type: ignore[arg-type]
    while not isinstance(gone := pool.hear(0.0), m.WorkerGone):
        pass
    assert pool.blame(gone) == "rank 2 on n2 exited with 0 in phase 'measure'"


def test_ranks_are_named_by_host():
    where = [Place(rank=r, host=f"n{r // 2}") for r in range(6)]
    pool = Pool(Team({}), "n", None, where)  # type: ignore[arg-type]
    assert pool.named([0, 1, 4]) == "ranks 0, 1 on n0; rank 4 on n2"

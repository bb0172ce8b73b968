"""Checkpoints on real files: every tensor as it was, cold, synced inside the time, and nothing left behind."""

import contextlib
import math
import os
import re
import resource
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest

from clustergauge import accept, metrics, warnings
from clustergauge.model import Measurement, Place, Series, Workload
from clustergauge.probe import Context, Skip, Wrong
from clustergauge.world import Serial
from storage_io import checkpoint as module, cold, layout, memory, workspace
from storage_io.checkpoint import checkpoint, needs, prepare
from storage_io.errors import StorageError
from storage_io.formats import Shard
from storage_io.models import MODELS, STATES, first_of
from storage_io.pattern import Pattern
from tests import made
from tests.faults.checkpoints import SLOW_S, TINY
from tests.on_disk import (
    ROOT,
    context,
    data_file,
    end,
    flip,
    fraction,
    has_device,
    measuring,
    mounted,
    names,
    needs_root,
)
from tests.planted_cases import supervised

FORMATS = [
    "torch",
    pytest.param(
        "safetensors", marks=pytest.mark.skipif(find_spec("safetensors") is None, reason="safetensors is not installed")
    ),
    "raw",
]
SIZE = 4 << 20


@pytest.fixture(autouse=True)
def small_proof(monkeypatch):
    monkeypatch.setattr(module, "PROBE_BYTES", 1 << 20)


@contextlib.contextmanager
def prepared(target, kind, op, size=SIZE, model=TINY, **fields):
    ctx = context(target, **fields)
    work = prepare(ctx, "tiny", kind, op, size, spare=0, model=model)
    try:
        yield work, ctx
    finally:
        work.close()
    assert names(target) == []


def shard_of(work):
    return work.run.__self__._due


def place_of(target, work, part):
    """Where in the file the data of a tensor begins."""
    return data_file(target).read_bytes().index(bytes(shard_of(work).views()[part.name][:64]))


# -- which tensors


def count(model):
    return sum(math.prod(shape) for _, shape, _ in model.parameters())


def test_the_models_have_as_many_parameters_as_published():
    known = {"llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "llama3-405b": 405_853_388_800}
    assert {name: count(model) for name, model in MODELS.items()} == known


@pytest.mark.parametrize("name", MODELS)
def test_the_shards_hold_the_model_and_not_much_more(name):
    model = MODELS[name]
    parts = model.shard()
    assert len(parts) == len(STATES) * len(list(model.parameters())) == len({part.name for part in parts})
    whole = model.ranks * sum(part.bytes for part in parts)
    assert 14 * count(model) <= whole < 1.01 * 14 * count(model)  # norms are whole on each rank, rows are rounded up


def test_shards_are_split_as_their_parallelism_says():
    parts = {part.name: part for part in MODELS["llama3-70b"].shard()}
    assert parts["model.layers.0.self_attn.q_proj"].shape == (8192 // 8 // 8, 8192)
    assert parts["exp_avg.layers.79.mlp.down_proj"].shape == (8192 // 8, 28672 // 8)
    assert parts["master.norm"].shape == (8192 // 8,)
    assert next(part for part in MODELS["llama3-405b"].shard() if part.name == "model.lm_head").shape == (251, 16384)  # of 250.5
    assert (parts["model.norm"].dtype, parts["exp_avg_sq.norm"].dtype) == ("bf16", "fp32")


def test_the_first_that_fit_are_taken():
    parts = TINY.shard()
    sizes = [part.bytes for part in parts]
    assert first_of(parts, sum(sizes)) == parts
    assert first_of(parts, sum(sizes[:5])) == parts[:5]
    assert first_of(parts, sum(sizes[:5]) - 1) == parts[:4]
    assert first_of(parts, sizes[0] - 1) == []


# -- sound


@pytest.mark.parametrize("op", ["save", "restore"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_shard_is_saved_or_restored_verified_and_removed(tmp_path, kind, op):
    with prepared(tmp_path, kind, op) as (work, ctx):
        for _ in range(2):
            work.reset()
            work.run()
            work.note()
        work.check()
        way = "written" if op == "save" else "read"
        whole = sum(part.bytes for part in TINY.shard())
        assert (work.workload.bytes_read, work.workload.bytes_written) == ((0, whole) if op == "save" else (whole, 0))
        assert (ctx.settings["shard_bytes"], ctx.settings["shard_fraction"]) == (whole, 1.0)
        assert ctx.settings["shard"] == f"{len(TINY.shard())} of {len(TINY.shard())} tensors, 100 % of one of tiny's 1 shards"
        assert "cut_to" not in ctx.settings
        assert kind == "raw" or ctx.settings["direct"] is False
        if kind == "raw":
            assert "framework" not in ctx.series
        else:
            assert len(ctx.series["framework"][1]) == 2
            assert min(ctx.series["framework"][1]) > 0
        if has_device(ctx):
            assert ctx.device_bytes[f"asked_{way}"] == 2 * whole
            assert fraction(ctx, way) >= 0.95


@pytest.mark.parametrize("kind", FORMATS)
def test_both_syncs_end_a_save_inside_the_time(tmp_path, monkeypatch, kind):
    calls = []
    with prepared(tmp_path, kind, "save") as (work, _):
        work.reset()
        real = cold.sync
        monkeypatch.setattr(cold, "sync", lambda path: (calls.append((path, path.stat().st_size)), real(path)))
        work.run()
        path = data_file(tmp_path)
        assert [path for path, _ in calls] == [path, path.parent]
        assert calls[0][1] >= shard_of(work).bytes


def test_a_save_tells_the_library_from_the_syncs_and_a_restore_from_the_same_while_cached(tmp_path):
    with prepared(tmp_path, "torch", "save") as (work, ctx):
        work.reset()
        work.run()
        work.note()
        done = work.run.__self__
        assert ctx.series["framework"] == ("s", [done._framework_s])
        assert 0 < done._framework_s < done._took_s
    with prepared(tmp_path, "torch", "restore") as (work, ctx):
        work.reset()
        work.run()
        before = dict(ctx.device_bytes)
        work.note()
        after = dict(ctx.device_bytes)
        work.note()  # looked at already: what is done once more counts for nothing
        assert ctx.device_bytes == after != before


# -- wrong


@pytest.mark.parametrize("kind", FORMATS)
def test_a_flipped_bit_in_a_restored_tensor_is_found_and_the_tensor_named(tmp_path, kind):
    part = TINY.shard()[17]
    with prepared(tmp_path, kind, "restore") as (work, _):
        at = place_of(tmp_path, work, part)
        work.reset()
        was = flip(data_file(tmp_path), at + 7)
        work.run()
        words = f"tensor {part.name} differs at byte 7 of {part.bytes}: expected {was:#04x}, got {was ^ 4:#04x}; 1 bytes do$"
        with pytest.raises(Wrong, match=re.escape(words[:-1]) + "$"):
            work.check()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_flipped_bit_in_a_saved_tensor_is_found(tmp_path, kind):
    part = TINY.shard()[30]
    with prepared(tmp_path, kind, "save") as (work, _):
        work.reset()
        work.run()
        work.check()
        flip(data_file(tmp_path), place_of(tmp_path, work, part) + part.bytes - 1)
        with pytest.raises(Wrong, match=f"tensor {part.name} differs at byte {part.bytes - 1} of {part.bytes}"):
            work.check()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_restore_that_did_nothing_is_caught(tmp_path, kind):
    with prepared(tmp_path, kind, "restore") as (work, _):
        work.reset()
        work.run()
        work.note()
        work.reset()
        with pytest.raises(Wrong, match=r"tensor model\.layers\.0\.input_layernorm differs at byte 0 of 128: .* got 0xa5"):
            work.check()


def test_a_stale_save_is_caught(tmp_path, monkeypatch):
    with prepared(tmp_path, "raw", "save") as (work, _):
        work.reset()
        work.run()
        done = work.run.__self__
        old = data_file(tmp_path).read_bytes()
        work.reset()
        monkeypatch.setattr(done._format, "save", lambda path: path.write_bytes(old))
        work.run()
        with pytest.raises(Wrong, match="differs at byte"):
            work.check()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_short_file_is_caught_whatever_reads_it(tmp_path, kind):
    with prepared(tmp_path, kind, "save") as (work, _):
        work.reset()
        work.run()
        path = data_file(tmp_path)
        os.truncate(path, 1 << 20)
        with pytest.raises(Wrong, match=f"{path} holds {1 << 20} bytes, its tensors have {shard_of(work).bytes}"):
            work.note()
    with prepared(tmp_path, kind, "restore") as (work, _):
        work.reset()
        path = data_file(tmp_path)
        os.truncate(path, 1 << 20)
        work.run()
        with pytest.raises(StorageError, match=rf"^cannot (restore|read) {path}"):
            work.note()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_limit_on_file_size_is_one_sentence(tmp_path, kind):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with prepared(tmp_path, kind, "save") as (work, _):
        work.reset()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            work.run()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(StorageError, match=r"^cannot (save|write|allocate) .*data-0: .*[Ff]ile too large"):
            work.note()


@needs_root
@pytest.mark.parametrize("kind", FORMATS)
def test_a_disk_that_fills_midway_is_told_as_such_whatever_the_library_says(tmp_path, kind):
    with (
        mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=24m", "none") as target,
        prepared(target, kind, "save") as (work, _),
    ):
        work.reset()
        (target / "hog").write_bytes(b"x" * (os.statvfs(target).f_bavail * os.statvfs(target).f_frsize - SIZE // 2))
        work.run()
        with pytest.raises(StorageError, match=r"^cannot (save|write|allocate) .*data-0: .*[Nn]o space left on device"):
            work.note()
        (target / "hog").unlink()


# -- cached


@pytest.mark.parametrize("kind", ["torch"])
def test_a_restore_that_the_cache_answered_is_invalid(tmp_path, kind):
    with prepared(tmp_path, kind, "restore") as (work, ctx):
        if not has_device(ctx):
            pytest.skip("nothing is counted here")
        work.reset()
        with subprocess.Popen(["cat", str(data_file(tmp_path))], stdout=subprocess.PIPE) as other:
            assert len(other.stdout.read()) > shard_of(work).bytes
            work.run()
            work.note()
        assert fraction(ctx, "read") < 0.05
        record = made.record(work=work.workload, device_bytes=ctx.device_bytes, settings=ctx.settings)
        (verdict,) = accept.judge([record])
        assert (verdict.verdict, verdict.reason) == ("invalid", "cached: the device moved 0% of the bytes")


def test_what_cannot_be_dropped_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(cold, "drop", lambda path: 4096)
    with prepared(tmp_path, "torch", "restore") as (work, ctx):
        work.reset()
        assert ctx.settings["page_cache_left_bytes"] == 4096


# -- as much as there is room and time for


def test_a_shard_is_cut_to_the_space_that_is_free_and_says_so(tmp_path, monkeypatch):
    def require(_target, need, _files, _spare=None):
        if need > 20 << 20:
            raise Skip("no space")

    monkeypatch.setattr(workspace, "require_space", require)
    monkeypatch.setattr(module, "require_space", require)
    with prepared(tmp_path, "raw", "save", 64 << 20, MODELS["llama3-405b"]) as (work, ctx):
        assert ctx.settings["cut_to"] == 16 << 20
        assert 12 << 20 < ctx.settings["shard_bytes"] <= 16 << 20
        assert ctx.settings["shard_fraction"] == pytest.approx(ctx.settings["shard_bytes"] / 11.1e9, rel=0.01)
        assert re.fullmatch(r"\d+ of 4548 tensors, 0\.1\d* % of one of tiny's 512 shards", ctx.settings["shard"])
        assert work.workload.bytes_written == ctx.settings["shard_bytes"]


def test_a_shard_is_cut_to_memory_and_to_patience(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda: 256 + 13 << 20)
        with prepared(tmp_path, "raw", "save", 64 << 20, MODELS["llama3-8b"]) as (_, ctx):
            assert ctx.settings["cut_to"] == 4 << 20  # three copies of 4 MiB
    monkeypatch.setattr(layout, "seconds", lambda call: (call(), 0.5)[1])  # 2 MiB/s, and two times 2 s to wait
    with prepared(tmp_path, "raw", "restore", 64 << 20, MODELS["llama3-8b"]) as (_, ctx):
        assert ctx.settings["cut_to"] == 8 << 20


def test_what_does_not_fit_at_all_is_skipped_in_words(tmp_path, monkeypatch):
    with pytest.raises(Skip, match="no target folder"):
        prepare(Context(world=Serial(), device="cpu", seed=1, scratch=tmp_path), "llama3-8b", "raw", "save", SIZE)
    with pytest.raises(Skip, match="must stay free"):
        prepare(context(tmp_path), "llama3-8b", "raw", "save", SIZE, spare=1 << 60)
    with pytest.raises(StorageError, match=r"^cannot write to .*/nowhere: no such file or directory$"):
        prepare(context(tmp_path / "nowhere"), "llama3-8b", "raw", "save", SIZE, spare=0)
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    with pytest.raises(Skip, match="3 copies of 1MiB for each of 1 rank need more memory than the 100 MiB available"):
        prepare(context(tmp_path), "llama3-8b", "raw", "save", SIZE, spare=0)
    assert names(tmp_path) == []


def test_what_each_format_needs():
    assert needs("raw", "save", "one", 1).modules == ()
    assert needs("safetensors", "save", "one", 1).modules == ("torch", "safetensors")
    every = needs("raw", "restore", "all", 1)
    assert (every.world, every.ranks, every.modules) == ("torch", 2, ("torch",))
    ids = [case.id for case in checkpoint.cases(model=["llama3-8b"], ranks=["one"], op=["save"], size=[1 << 30])]
    assert ids[1] == "checkpoint/model=llama3-8b/format=safetensors/op=save/ranks=one/size=1GiB"


def test_listing_imports_nothing_heavy():
    code = "import sys, storage_io.checkpoint; print({'torch', 'numpy', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


# -- nothing left behind


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_files_go_with_a_terminated_worker_and_are_swept_after_a_killed_one(tmp_path, number):
    params = {"model": "llama3-8b", "format": "raw", "op": "save", "ranks": "one", "size": 8 << 20}
    with measuring(tmp_path, "storage_io.checkpoint", "checkpoint", **params) as process:
        end(process, number)
    assert len(names(tmp_path)) == (number == signal.SIGKILL)
    workspace.sweep(tmp_path)
    assert names(tmp_path) == []


def test_a_file_that_a_library_had_not_finished_is_swept_too(tmp_path):
    space = workspace.Workspace(tmp_path, 0, spare=0)
    (space.path / ".tmpA1b2C3").write_bytes(b"half")
    space.close()
    assert names(tmp_path) == []


@pytest.mark.parametrize("planted", [KeyboardInterrupt(), SystemExit(143), OSError(122, "Disk quota exceeded")])
@pytest.mark.slow
def test_nothing_is_left_when_preparing_ends_early(tmp_path, monkeypatch, planted):
    def fail(*_):
        raise planted

    monkeypatch.setattr(cold, "sync", fail)
    with pytest.raises((OSError, KeyboardInterrupt, SystemExit)):
        prepare(context(tmp_path), "tiny", "torch", "restore", SIZE, spare=0, model=TINY)
    assert names(tmp_path) == []


# -- several ranks, for real


@pytest.fixture(scope="module")
def supervisor():
    with supervised() as owner:
        yield owner


def run(supervisor, target, kind, op, fault, budget_s=0.05):
    params = {"format": kind, "op": op, "fault": fault}
    fields = {"case": "checkpoints", "probe": "checkpoints", "module": "tests.faults.checkpoints", "params": params}
    planned = made.planned(
        made.record(), **fields, device="cpu:0", ranks=2, world="torch", budget_s=budget_s, timeout_s=30.0, target=str(target)
    )
    return supervisor.run(planned, seed=1, llc_bytes=1 << 20).outcome


def record_of(outcome):
    places = [Place(rank=rank, host=f"node-{rank}") for rank in range(2)]
    return made.record(
        work=outcome.workload,
        measurement=outcome.measurement,
        settings=outcome.settings,
        device_bytes=outcome.device_bytes,
        ranks=2,
        placement=places,
    )


@pytest.mark.parametrize(("kind", "op"), [("torch", "save"), ("raw", "restore")])
def test_two_ranks_have_a_file_each_and_count_together(supervisor, tmp_path, kind, op):
    outcome = run(supervisor, tmp_path, kind, op, "none")
    assert outcome.status == "ok", outcome
    whole = sum(part.bytes for part in TINY.shard())
    assert outcome.workload.bytes_read + outcome.workload.bytes_written == 2 * whole
    samples = outcome.measurement.samples_s
    assert len(outcome.measurement.series["rank_seconds"].values) == 2 * len(samples)
    found = {metric.name: metric for metric in metrics.derive([record_of(outcome)])}
    assert ("framework_time" in found) == (kind == "torch")
    if outcome.device_bytes:
        asked = outcome.device_bytes["asked_written" if op == "save" else "asked_read"]
        assert asked % (2 * whole) == 0
        assert found["device_fraction"].value >= 0.95
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("op", "fault", "status", "words"),
    [
        ("save", "short", "wrong", r"^rank 1: \S+/data-0 holds \d+ bytes, its tensors have \d+$"),
        ("save", "full", "error", r"^rank 1: StorageError: cannot save \S+/data-0: no space left on device$"),
        ("restore", "flip", "wrong", r"^rank 1: \S+/data-0: tensor \S+ differs at byte \d+ of \d+"),
        ("save", "refuses", "skipped", r"^rank 1: this rank's disk is not there$"),
    ],
)
@pytest.mark.slow
def test_the_rank_that_failed_is_named_and_nothing_is_left(supervisor, tmp_path, op, fault, status, words):
    outcome = run(supervisor, tmp_path, "raw", op, fault)
    assert outcome.status == status
    assert re.search(words, outcome.reason), outcome.reason
    assert names(tmp_path) == []


@pytest.mark.slow
def test_the_slow_rank_is_named(supervisor, tmp_path):
    outcome = run(supervisor, tmp_path, "raw", "save", "slow", budget_s=1.0)
    assert outcome.status == "ok", outcome
    assert max(outcome.measurement.samples_s) >= SLOW_S
    found = {doubt.name: doubt for doubt in warnings.doubts([record_of(outcome)])}
    assert found["slow storage of a rank"].detail.startswith("rank 1 on node-1 takes ")


# -- what records say


def record(times, ranks=3, **series):
    flat = [seconds for sample in times for seconds in sample]
    parts = {"rank_seconds": Series(unit="s", values=flat)} | {n: Series(unit="s", values=v) for n, v in series.items()}
    measured = Measurement(clock="wall", cache="none", samples_s=[max(sample) for sample in times], series=parts)
    return made.record(work=Workload(bytes_written=1 << 30, bound="storage"), measurement=measured, ranks=ranks)


def test_a_rank_is_slow_by_habit_or_not_at_all():
    slow = [[1.0, 1.6, 0.9]] * 4 + [[1.0, 1.0, 1.0]]
    (doubt,) = [d for d in warnings.doubts([record(slow)]) if d.name == "slow storage of a rank"]
    assert doubt.detail == "rank 1 takes 1.60 s where the others take 950 ms, in 80% of the samples"
    for harmless in (slow[:4], [[1.0, 1.4, 1.0]] * 9, [[1.0, 1.6, 1.0], [1.6, 1.0, 1.0]] * 5):
        assert "slow storage of a rank" not in [d.name for d in warnings.doubts([record(harmless)])]
    assert "slow storage of a rank" not in [d.name for d in warnings.doubts([record([[1.0]] * 9, ranks=1)])]


def test_framework_and_device_add_up_to_the_time():
    times = [[1.0], [2.0], [3.0], [2.0], [2.0], [2.0], [2.0]]
    found = {m.name: m for m in metrics.derive([record(times, ranks=1, framework=[0.5] * 7)])}
    assert (found["framework_time"].value, found["device_time"].value, found["time"].value) == (0.5, 1.5, 2.0)
    assert found["device_time"].better == "lower"
    found = {m.name for m in metrics.derive([record(times, ranks=1, framework=[0.5] * 6)])}
    assert not {"framework_time", "device_time"} & found
    found = {m.name for m in metrics.derive([record(times, ranks=1, framework=[4.0] * 7)])}
    assert "device_time" not in found  # what is below zero is no time


def test_tensors_lie_where_their_views_say_and_have_storages_of_their_own():
    shard = Shard(TINY.shard())
    shard.fill(Pattern())
    for name, tensor in shard.tensors().items():
        view = shard.views()[name]
        assert bytes(tensor.untyped_storage().tolist() if tensor.numel() < 99 else view) == bytes(view)
        assert tensor.untyped_storage().nbytes() == len(view)

"""Every kind of request does what it says, and nothing of ours is left."""

import uuid

import pytest

from clustergauge.probe import Skip
from tests.objects import BUCKET, SMALL, context, data, is_data, keys, sample, uploads, work


@pytest.mark.parametrize("op", ["put", "get", "range", "list", "delete"])
def test_small_objects(op, tmp_path, store):
    with work(tmp_path, op, 4096) as (made, ctx):
        for _ in range(2):
            sample(made)
        made.check()
        requests = ctx.settings["requests_per_sample"]
        assert made.steps == requests * (30 if op == "list" else 1)
        assert len(ctx.series["latency"][1]) == 2 * requests
        assert min(ctx.series["latency"][1]) > 0
        assert made.workload.ios == 1
        assert made.workload.bytes_read == (4096 if op in ("get", "range") else 0)
        assert made.workload.bytes_written == (4096 if op == "put" else 0)
        assert ctx.settings["retries"] == 0
        assert ctx.settings["fs_type"] == "s3"
        assert all(key.startswith("some/where/clustergauge-") for key in keys(store))
    assert keys(store) == []


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("op", ["put", "get"])
def test_large_objects_go_in_parts_where_several_are_in_flight(op, concurrency, tmp_path, store, proxy):
    size = 17 << 20
    with work(tmp_path, op, size, concurrency) as (made, ctx):
        proxy.seen.clear()
        sample(made)
        timed = [(method, path) for method, path in proxy.seen if is_data(path)]
        made.check()
        assert made.workload.ios == 0
        assert made.workload.bytes_read + made.workload.bytes_written == size
        assert "latency" not in ctx.series
    if op == "put":
        assert sum("partNumber=" in path for _, path in timed) == (3 if concurrency > 1 else 0)
        assert sum(method == "PUT" for method, _ in timed) == (3 if concurrency > 1 else 1)
    else:
        assert [method for method, _ in timed] == ["GET"] * (3 if concurrency > 1 else 1)
    assert (keys(store), uploads(store)) == ([], [])


def test_objects_of_others_stay(tmp_path, store):
    theirs = ["some/where/data-1", f"some/where/clustergauge-{'0' * 16}/{'1' * 16}/data-1", "else"]
    for key in theirs:
        store.put_object(Bucket=BUCKET, Key=key, Body=b"theirs")
    with work(tmp_path, "put", 4096) as (made, _):
        sample(made)
    assert keys(store) == sorted(theirs)


def test_every_object_is_another_and_cannot_be_compressed(tmp_path, store):
    import zlib

    with work(tmp_path, "get", 65536, total=1 << 20):
        bodies = [store.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in data(store)]
    assert len({*bodies}) == len(bodies) == 16
    assert len(zlib.compress(b"".join(bodies))) > 0.99 * 16 * 65536


@pytest.mark.parametrize(
    ("op", "size", "concurrency", "words"),
    [
        ("put", 1000, 1, "not a whole number of 4 KiB blocks"),
        ("list", 16 << 20, 1, "objects of at most 8MiB"),
        ("get", 64 << 10, 1, "^8 objects of 64KiB are more than 256KiB; take a smaller --set size=…$"),
        ("delete", 16 << 10, 17, "^17 objects of 16KiB are more than 256KiB; take a smaller --set size=…$"),
        ("range", 16 << 10, 17, "^17 ranges of 16KiB are more than 256KiB; take a smaller --set size=…$"),
        ("put", 16 << 20, 3, "^3 parts of 8MiB at a time are more than 16MiB; take a smaller --set concurrency=…$"),
        ("get", 16 << 20, 3, "^3 parts of 8MiB at a time are more than 16MiB; take a smaller --set concurrency=…$"),
        ("put", 6 << 30, 1, "^one request can put 5GiB at most; take --set concurrency=8: in parts$"),
        ("list", 64 << 10, 1, "are more than 256KiB"),
    ],
)
def test_what_has_no_meaning_is_skipped_in_words(op, size, concurrency, words, tmp_path):
    with pytest.raises(Skip, match=words), work(tmp_path, op, size, concurrency):
        pass


def test_a_bucket_that_keeps_what_is_deleted_is_not_used(tmp_path, store):
    name = f"versioned-{uuid.uuid4().hex}"
    store.create_bucket(Bucket=name)
    store.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    from clustergauge.object_url import ObjectUrl
    from storage_io import object_store

    ctx = context(tmp_path)
    ctx.objects = ObjectUrl(name)
    with pytest.raises(Skip, match="keeps the versions of deleted objects"):
        object_store.prepare(ctx, "put", 1, 4096, **SMALL)
    assert store.list_objects_v2(Bucket=name)["KeyCount"] == 0

"""Object stores: every kind of request, what a store that lies looks like, and that nothing of ours is left in it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from clustergauge import processes, warnings
from clustergauge.model import Measurement, Record
from clustergauge.probe import Skip, Wrong
from tests import made
from tests.objects import (
    BUCKET,
    KEY,
    SECRET,
    TOKEN,
    URL,
    Answer,
    Proxy,
    context,
    environment,
    error_of,
    is_data,
    needs_store,
    serving,
)
from tests.on_disk import ROOT, end, measuring

pytestmark = needs_store
MODULE = "storage_io.object_store"
SMALL = {"total": 256 << 10, "names": 30}


@pytest.fixture(scope="module")
def port():
    with serving() as number:
        yield number


@pytest.fixture
def proxy(port):
    proxy = Proxy(port)
    with contextlib.closing(proxy):
        yield proxy


@pytest.fixture(scope="module")
def s3(port):
    """A client of the bare server, with a bucket."""
    from botocore.session import Session

    where = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    client = Session().create_client("s3", aws_access_key_id=KEY, aws_secret_access_key=SECRET, **where)
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.close()


@pytest.fixture(scope="module")
def loader():
    """Of botocore's descriptions of S3, which it would read anew for every client."""
    from botocore.loaders import create_loader

    return create_loader()


@pytest.fixture(autouse=True)
def store(monkeypatch, s3, proxy, loader, tmp_path):
    """The bare server, whose bucket is empty; the code under test goes through the proxy."""
    from storage_io import object_client

    environment(monkeypatch, proxy.port, tmp_path)
    monkeypatch.setattr("botocore.session.create_loader", lambda _path: loader)
    for key in keys(s3):
        s3.delete_object(Bucket=BUCKET, Key=key)
    monkeypatch.setattr(object_client, "FIRST_WAIT_S", 0.001)
    return s3


def keys(s3):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def uploads(s3):
    return [upload["Key"] for upload in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


@contextlib.contextmanager
def work(tmp_path, op, size, concurrency=4, **more):
    from storage_io import object_store

    ctx = context(tmp_path)
    made = object_store.prepare(ctx, op, concurrency, size, **(SMALL | more))
    try:
        yield made, ctx
    finally:
        made.close()


def sample(made):
    made.reset()
    made.run()
    made.note()


def data(s3):
    return [key for key in keys(s3) if is_data(key)]


# -- what it does


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


@pytest.mark.parametrize("concurrency", [1, 4])
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
    ("op", "size", "words"),
    [
        ("put", 1000, "not a whole number of 4 KiB blocks"),
        ("list", 16 << 20, "objects of at most 8MiB"),
        ("get", 64 << 10, "is above 32KiB"),
        ("list", 64 << 10, "are more than 256KiB"),
    ],
)
def test_sizes_without_a_meaning_are_skipped(op, size, words, tmp_path):
    with pytest.raises(Skip, match=words), work(tmp_path, op, size):
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


# -- a store that lies


def test_a_lost_write_is_found(tmp_path, proxy):
    with work(tmp_path, "put", 4096) as (made, _):
        lost = []

        def drop_one(method, path, *_):
            if method == "PUT" and is_data(path) and not lost:
                lost.append(path)
                return Answer(200, b"", {"ETag": '"0123456789abcdef0123456789abcdef"'})
            return None

        made.reset()
        proxy.before = drop_one
        made.run()
        with pytest.raises(Wrong, match=rf"1 of \d+ objects that were written are not listed: {lost[0].rpartition('/')[2]}"):
            made.reset()


def test_a_large_write_that_is_lost_is_found(tmp_path, proxy):
    with work(tmp_path, "put", 9 << 20, 1) as (made, _):
        made.reset()
        proxy.before = lambda method, path, *_: Answer(200, b"", {"ETag": '"00"'}) if method == "PUT" and is_data(path) else None
        made.run()
        with pytest.raises(Wrong, match="not listed"):
            made.check()


@pytest.mark.parametrize(("op", "size"), [("get", 8192), ("range", 8192), ("get", 9 << 20)])
def test_a_flipped_bit_is_found(op, size, tmp_path, proxy):
    with work(tmp_path, op, size, 1) as (made, _):
        flipped = []

        def flip(method, path, answer):
            if method == "GET" and is_data(path) and not flipped:
                flipped.append(path)
                body = bytearray(answer.body)
                body[5000] ^= 1
                return Answer(answer.status, bytes(body), answer.headers)
            return answer

        made.reset()
        proxy.after = flip
        made.run()
        with pytest.raises(Wrong, match=r"s3://bench/some/where/clustergauge-.*/data-\d+ differs at byte \d+"):
            made.check()


def test_a_write_that_was_altered_is_found(tmp_path, proxy, store):
    with work(tmp_path, "put", 4096) as (made, _):
        sample(made)
        key = data(store)[0]
        body = bytearray(store.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        body[77] ^= 4
        store.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))
        with pytest.raises(Wrong, match="differs at byte 77: expected"):
            made.check()


def test_a_short_range_is_found(tmp_path, proxy):
    with work(tmp_path, "range", 8192, 1) as (made, _):

        def cut(method, path, answer):
            if method == "GET" and is_data(path):
                first, _, rest = answer.headers["content-range"].removeprefix("bytes ").partition("-")
                headers = answer.headers | {"content-range": f"bytes {first}-{int(first) + 4095}/{rest.partition('/')[2]}"}
                return Answer(206, answer.body[:4096], headers)
            return answer

        made.reset()
        proxy.after = cut
        with pytest.raises(Wrong, match=r"data-1: bytes \d+\.\.\d+ were asked for, bytes \d+\.\.\d+ came"):
            made.run()
        proxy.after = lambda _method, _path, answer: answer


@pytest.mark.parametrize("op", ["get", "range"])
def test_an_answer_that_is_too_short_is_found(op, tmp_path, proxy):
    with work(tmp_path, op, 8192, 1) as (made, _):
        made.reset()
        proxy.after = lambda method, path, answer: (
            Answer(answer.status, answer.body[:4096], answer.headers) if method == "GET" and is_data(path) else answer
        )
        made.run()
        with pytest.raises(Wrong, match=r"asked for 8192 bytes from byte \d+ on, 4096 bytes came"):
            made.check()


def test_a_store_that_ignores_ranges_is_named(tmp_path, proxy):
    from storage_io.errors import StorageError

    with work(tmp_path, "range", 8192, 1) as (made, _):
        made.reset()
        proxy.after = lambda method, path, answer: Answer(200, answer.body, {}) if is_data(path) and method == "GET" else answer
        with pytest.raises(StorageError, match="can't do ranges"):
            made.run()
        proxy.after = lambda _method, _path, answer: answer


def test_a_delete_that_does_nothing_is_found(tmp_path, proxy):
    with work(tmp_path, "delete", 4096) as (made, _):
        made.reset()
        proxy.before = lambda method, path, *_: Answer(204) if method == "DELETE" else None
        made.run()
        proxy.before = lambda *_: None
        with pytest.raises(Wrong, match="listed that must not be there"):
            made.check()


def test_a_list_that_forgets_is_found(tmp_path, proxy):
    with work(tmp_path, "list", 4096) as (made, _):

        def forget(method, path, answer):
            if "list-type=2" in path:
                start = answer.body.index(b"<Contents>")
                stop = answer.body.index(b"</Contents>") + len(b"</Contents>")
                return Answer(answer.status, answer.body[:start] + answer.body[stop:], answer.headers)
            return answer

        made.reset()
        proxy.after = forget
        made.run()
        with pytest.raises(Wrong, match="1 of 30 objects that were written are not listed"):
            made.check()
        proxy.after = lambda _method, _path, answer: answer


def test_an_object_that_vanishes_is_wrong_and_no_error_of_the_request(tmp_path, proxy, store):
    with work(tmp_path, "get", 4096, 1) as (made, _):
        made.reset()
        for key in data(store):
            store.delete_object(Bucket=BUCKET, Key=key)
        with pytest.raises(Wrong, match="it is not there, though the store had said that it was written"):
            made.run()


# -- a store that is busy


def test_tries_are_counted_and_doubted(tmp_path, proxy):
    with work(tmp_path, "get", 4096, 1) as (made, ctx):
        left = [503, 503, 500]
        made.reset()
        proxy.before = lambda *_: error_of(left.pop(), "SlowDown") if left else None
        made.run()
        made.note()
        made.check()
        assert ctx.settings["retries"] == 3
    record = Record(
        run_id="r",
        case="object_store",
        probe="object_store",
        params={},
        machine_id="m",
        status="ok",
        started="",
        workload=made.workload,
        measurement=Measurement(clock="wall", cache="none", samples_s=[1.0] * 8),
        settings=ctx.settings,
    )
    found = {doubt.name: doubt for doubt in warnings.doubts([record])}
    assert found["retries"].detail.startswith("3 requests were tried again")
    assert found["unproven"].detail.startswith("s3: what its servers read")


def test_a_store_that_stays_busy_is_an_error_that_says_so(tmp_path, proxy):
    from storage_io.errors import StorageError

    with work(tmp_path, "put", 4096, 1) as (made, _):
        made.reset()
        proxy.before = lambda method, path, *_: error_of(503, "SlowDown") if is_data(path) else None
        with pytest.raises(StorageError, match=r"\(tried 6 times\): the store asks to slow down: take a smaller concurrency"):
            made.run()
        proxy.before = lambda *_: None


def test_an_upload_in_parts_that_fails_leaves_no_parts(tmp_path, proxy, store):
    from storage_io.errors import StorageError

    with work(tmp_path, "put", 20 << 20, 4) as (made, _):
        made.reset()
        proxy.before = lambda method, path, *_: error_of(403, "AccessDenied") if "partNumber=2" in path else None
        with pytest.raises(StorageError, match="access is denied"):
            made.run()
        proxy.before = lambda *_: None
    assert (keys(store), uploads(store)) == ([], [])


# -- the way there


def test_a_certificate_must_be_trusted(tmp_path, port, monkeypatch):
    from storage_io.errors import StorageError

    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    made = tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(["openssl", "req", *kind, *names, "-keyout", str(made), "-out", str(made)], check=True, capture_output=True)
    secured = Proxy(port, made)
    with contextlib.closing(secured):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{secured.port}")
        with pytest.raises(StorageError, match=r"certificate is not trusted.*AWS_CA_BUNDLE"), work(tmp_path, "put", 4096):
            pass
        monkeypatch.setenv("AWS_CA_BUNDLE", str(made))
        with work(tmp_path, "put", 4096) as (case, ctx):
            sample(case)
            case.check()
        assert ctx.settings["tls"] is True
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
        with pytest.raises(StorageError, match=r"none\.pem"), work(tmp_path, "put", 4096):
            pass


def test_an_endpoint_that_never_answers(tmp_path, monkeypatch):
    from storage_io import object_client, object_login
    from storage_io.errors import StorageError

    monkeypatch.setattr(object_login, "ANSWER_S", 0.2)
    monkeypatch.setattr(object_client, "ANSWER_S", 0.2)
    monkeypatch.setattr(object_client, "SLOWEST", 1e9)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with (
            pytest.raises(StorageError, match=r"cannot list .*: the endpoint did not answer in time"),
            work(tmp_path, "put", 4096),
        ):
            pass


# -- what is left


def target():
    return str(URL)


@pytest.mark.slow
def test_sigterm_leaves_nothing(store):
    with measuring(target(), MODULE, "object_store", op="get", concurrency=4, size=1 << 20) as process:
        assert len(data(store)) > 0
        assert end(process) == 143
    assert keys(store) == []


def test_what_a_killed_process_left_the_next_one_sweeps(tmp_path, store, proxy):
    with measuring(target(), MODULE, "object_store", op="get", concurrency=4, size=1 << 20) as process:
        left = keys(store)
        folder = next(key for key in left if key.endswith(".owner")).removesuffix(".owner")
        store.create_multipart_upload(Bucket=BUCKET, Key=f"{folder}/data-7")
        with work(tmp_path, "put", 4096):
            assert set(left) <= set(keys(store))  # it lives
        assert uploads(store) == [f"{folder}/data-7"]
        end(process, signal.SIGKILL)
    assert set(left) <= set(keys(store))
    done = subprocess.run(
        [sys.executable, "-m", "storage_io.workspace", target()], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (keys(store), uploads(store)) == ([], [])


def test_a_process_that_cannot_be_looked_up_is_left_alone_for_a_day(tmp_path, store, monkeypatch):
    from storage_io import object_space

    key = URL.key(f"{object_space._owner()}/{'a' * 16}")
    store.put_object(Bucket=BUCKET, Key=f"{key}.owner", Body=b"another-boot 1 1 1\n")
    store.put_object(Bucket=BUCKET, Key=f"{key}/data-1", Body=b"x")
    with work(tmp_path, "put", 4096):
        pass
    assert len(keys(store)) == 2
    later = time.time() + 90_000
    monkeypatch.setattr(object_space.time, "time", lambda: later)
    with work(tmp_path, "put", 4096):
        pass
    assert keys(store) == []


# -- other runs at work


def run_of(monkeypatch, name):
    """From now on this process is of another run."""
    monkeypatch.setenv("CLUSTERGAUGE_RUN", name)


def mark(store, name="0" * 16):
    store.put_object(Bucket=BUCKET, Key=URL.key(f"clustergauge-at-work/{name}"), Body=b"")


def other_runs(tmp_path):
    with work(tmp_path, "put", 4096) as (_, ctx):
        pass
    return ctx.settings.get("other_runs")


def test_a_run_under_the_same_prefix_is_noticed_and_its_own_cases_are_not(tmp_path, store, monkeypatch):
    run_of(monkeypatch, "one")
    with measuring(target(), MODULE, "object_store", op="get", concurrency=4, size=1 << 20) as process:
        assert other_runs(tmp_path) is None
        run_of(monkeypatch, "two")
        assert other_runs(tmp_path) == "1, by its mark"
        end(process, signal.SIGKILL)
    assert sum("at-work" in key for key in keys(store)) == 1
    assert other_runs(tmp_path) is None  # swept with the rest
    assert keys(store) == []
    record = made.record(settings={"other_runs": "1, by its mark"})
    (doubt,) = [d for d in warnings.doubts([record]) if d.name == "target in use"]
    assert doubt.detail == "other runs of ClusterGauge were at work in the target: 1, by its mark"


def test_a_mark_that_a_killed_run_of_another_host_left_does_not_count_for_long(tmp_path, store, monkeypatch):
    from storage_io import object_space

    mark(store)
    mark(store, "1" * 16)
    mark(store, "1" * 15 + "2")
    assert other_runs(tmp_path) == "2, by their marks"
    monkeypatch.setattr(object_space, "FRESH_S", 4.0)
    monkeypatch.setattr(object_space.time, "time", lambda: 0.0)  # our clock has no part in it
    time.sleep(5.1)
    mark(store, "1" * 16)
    assert other_runs(tmp_path) == "1, by its mark"
    assert len(keys(store)) == 3  # which are not ours to delete


@pytest.mark.parametrize("name", ["0" * 15, "0" * 17, "g" * 16, "0" * 16 + "/x", "٣" * 16])
def test_what_is_no_mark_is_nobody_at_work(tmp_path, store, name):
    mark(store, name)
    assert other_runs(tmp_path) is None


def test_a_run_that_comes_and_goes_between_samples_is_recorded(tmp_path, store, monkeypatch):
    from storage_io import object_store

    monkeypatch.setattr(object_store, "LOOK_S", 0.0)
    with work(tmp_path, "put", 4096) as (made_work, ctx):
        sample(made_work)
        assert "other_runs" not in ctx.settings
        mark(store)
        sample(made_work)
        store.delete_object(Bucket=BUCKET, Key=URL.key(f"clustergauge-at-work/{'0' * 16}"))
        sample(made_work)
        made_work.check()
        assert ctx.settings["other_runs"] == "1, by its mark"
        assert ctx.settings["retries"] == 0
    assert keys(store) == []


@pytest.mark.parametrize("answer", [Answer(200, b"", {"ETag": '"00"'}), error_of(403, "AccessDenied")])
def test_a_store_in_which_no_mark_can_be_made_proves_nothing_and_costs_nothing(tmp_path, store, proxy, answer):
    mark(store)
    proxy.before = lambda method, path, *_: answer if method == "PUT" and "at-work" in path else None
    with work(tmp_path, "put", 4096) as (made_work, ctx):
        sample(made_work)
        made_work.check()
    assert "other_runs" not in ctx.settings


# -- the whole command


def command(*words):
    return [sys.executable, "run_suite.py", "--suite", "full", "--target", str(URL), *words]


def run(*words, seconds=100):
    return subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, timeout=seconds)


ONE = ("-k", "object_store/op=put/*", "--set", "concurrency=8", "--set", "size=4KiB", "--duration", "0.3s")


def held(folder):
    """Everything that a run left behind on disk."""
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_run_keeps_no_secret_and_skips_folder_cases(tmp_path, store, monkeypatch, proxy):
    (tmp_path / "credentials").write_text(f"[night]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n")
    (tmp_path / "config").write_text(f"[profile night]\nendpoint_url = http://127.0.0.1:{proxy.port}\nregion = eu-west-1\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "night")
    words = ("-k", ONE[1], "-k", "flush", *ONE[2:])
    done = run(*words, "-o", str(tmp_path / "results"), "--format", "json")
    assert done.returncode == 0, done.stderr
    by_probe = {record["probe"]: record for record in json.loads(done.stdout)["records"]}
    assert by_probe["flush"]["reason"] == "no target folder"
    assert by_probe["object_store"]["status"] == "ok"
    assert by_probe["object_store"]["workload"]["ios"] == 1
    assert keys(store) == []
    kept = held(tmp_path / "results")
    assert b"object_store" in kept
    for secret in (SECRET, str(proxy.port)):
        assert secret.encode() not in kept
        assert secret not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_server_that_repeats_what_it_was_sent_puts_no_secret_into_a_run(tmp_path, proxy):
    def echo(method, path, headers, _body):
        if method == "GET" and is_data(path):
            return error_of(403, "SignatureDoesNotMatch", f"{SECRET} {headers}")
        return None

    proxy.before = echo
    done = run(*ONE, "-o", str(tmp_path / "results"))
    assert done.returncode == 3, done.stderr
    assert "the secret key does not belong to the access key: look at AWS_ACCESS_KEY_ID" in done.stdout
    kept = held(tmp_path / "results") + (done.stdout + done.stderr).encode()
    assert any(path.parent.name == "logs" for path in (tmp_path / "results").rglob("*"))
    for secret in (SECRET, TOKEN, KEY, "planted", "<Error>", "<?xml"):
        assert secret.encode() not in kept


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_nothing_once_the_run_has_ended(tmp_path, store):
    words = command(*ONE[:-1], "60s", "-o", str(tmp_path / "results"))
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until = time.monotonic() + 60
        while not data(store) and time.monotonic() < until:
            time.sleep(0.1)
        assert data(store)
        told = {p.pid: Path(f"/proc/{p.pid}/cmdline").read_bytes() for p in processes.descendants(process.pid)}
        (worker,) = [pid for pid, words in told.items() if b"clustergauge.worker" in words]
        os.kill(worker, signal.SIGKILL)
        said = process.stdout.read()
        assert process.wait(60) == 3, said
    assert "killed by SIGKILL" in said
    assert keys(store) == []


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_in_the_store(tmp_path, store):
    words = command(*ONE[:-1], "60s", "-o", str(tmp_path / "results"))
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until = time.monotonic() + 60
        while not data(store) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.0)
        assert data(store)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(60) == 130, said
    assert keys(store) == []


MISTAKES = (
    ("words", "changes", "target"),
    [
        ("there is no such bucket: make it, or name another with --target", {}, "s3://no-such-bucket/x"),
        ("no credentials: set AWS_ACCESS_KEY_ID and", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, str(URL)),
        ("no credentials: partial credentials found in env", {"AWS_SECRET_ACCESS_KEY": ""}, str(URL)),
        ("no credentials: the config profile (nobody) could not be found", {"AWS_PROFILE": "nobody"}, str(URL)),
        ("connection refused (the endpoint is that of AWS_ENDPOINT_URL)", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, str(URL)),
        ("the name of the endpoint is not known", {"AWS_ENDPOINT_URL": "http://no-such-host.invalid"}, str(URL)),
        ("AWS_ENDPOINT_URL is http://host:port", {"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, str(URL)),
        ("credentials go into AWS_ACCESS_KEY_ID", {"AWS_ENDPOINT_URL": f"http://me:{SECRET[8:20]}@127.0.0.1:1"}, str(URL)),
        ("endpoint and credentials come from the environment", {}, f"s3://{KEY}:{SECRET}@bench/x"),
    ],
)


@pytest.mark.parametrize(*MISTAKES)
def test_mistakes_are_one_line(words, changes, target, monkeypatch, capfd):
    from storage_io import object_space

    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert object_space.main("check", target) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert_told(line, words)


@pytest.mark.slow
@pytest.mark.parametrize(*MISTAKES)
def test_mistakes_make_no_run(words, changes, target, tmp_path, monkeypatch):
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    done = subprocess.run(
        [sys.executable, "run_suite.py", "--suite", "full", "--target", target, *ONE, "-o", str(tmp_path / "results")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert_told(line, words)
    assert not (tmp_path / "results").exists()


def assert_told(line, words):
    assert words in line
    assert "Error" not in line
    assert SECRET not in line
    assert SECRET[8:20] not in line

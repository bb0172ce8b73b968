"""A store that is busy, and one that cannot be reached or trusted."""

import contextlib
import shutil
import socket
import subprocess

import pytest

from clustergauge import warnings
from clustergauge.model import Measurement, Record
from tests.objects import Proxy, error_of, is_data, keys, sample, uploads, work


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

    with work(tmp_path, "put", 20 << 20, 3) as (made, _):
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

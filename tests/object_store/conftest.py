"""A real server, a proxy before it that misbehaves, and an empty bucket for each test."""

import contextlib

import pytest

from tests.objects import BUCKET, KEY, MISSING, SECRET, Proxy, environment, keys, serving


@pytest.fixture(scope="session")
def port():
    """Of the server."""
    if MISSING:
        pytest.skip(f"needs the packages {', '.join(MISSING)}")
    with serving() as number:
        yield number


@pytest.fixture
def proxy(port):
    proxy = Proxy(port)
    with contextlib.closing(proxy):
        yield proxy


@pytest.fixture(scope="session")
def s3(port):
    """A client of the bare server, with a bucket."""
    from botocore.session import Session

    where = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    client = Session().create_client("s3", aws_access_key_id=KEY, aws_secret_access_key=SECRET, **where)
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.close()


@pytest.fixture(scope="session")
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

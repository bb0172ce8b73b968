"""What tests of the object store share: a real server (moto's, in a process of its own), and a proxy that misbehaves."""

import contextlib
import http.client
import importlib.util
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from clustergauge.object_url import ObjectUrl
from clustergauge.probe import Context
from clustergauge.world import Serial

MODULES = ("obstore", "botocore", "moto", "flask", "flask_cors")
MISSING = [name for name in MODULES if importlib.util.find_spec(name) is None]
KEY, SECRET, TOKEN = "AKIAPLANTEDKEY", "planted/Secret+of40characters0123456789ab", "planted-session-token-0123456789"
BUCKET = "bench"
URL = ObjectUrl(BUCKET, "some/where")
MODULE = "storage_io.object_store"
SMALL = {"total": 256 << 10, "names": 30}
"""Of the probe: bytes of all objects at most, and names in a folder."""

SERVE = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def serving():
    """Port of a server of its own; it ends with its standard input."""
    command = [sys.executable, "-W", "ignore", "-c", SERVE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.kill()


def environment(monkeypatch, port, tmp_path):
    """Nothing of the user's own; the test's keys and its server."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)


def context(tmp_path, budget_s=0.05):
    return Context(world=Serial(), device="cpu", seed=1, scratch=tmp_path, objects=URL, budget_s=budget_s)


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict = field(default_factory=dict)


def error_of(status, code, more=""):
    """An error as S3 words it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planted {more}</Message></Error>"
    return Answer(status, text.encode(), {"Content-Type": "application/xml"})


class Proxy:
    """``before(method, path, headers, body)`` may answer itself; ``after(method, path, answer)`` may change the answer."""

    def __init__(self, port, certificate=None):
        self.before: Callable = lambda *_: None
        self.after: Callable = lambda _method, _path, answer: answer
        self.seen: list[tuple[str, str]] = []
        self.upstream = port
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append((self.command, self.path))
                answer = proxy.before(self.command, self.path, dict(self.headers), body)
                if answer is None:
                    answer = proxy.after(self.command, self.path, proxy.forward(self.command, self.path, self.headers, body))
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    with contextlib.suppress(OSError):
                        self.wfile.write(answer.body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # clients that are killed break off
        if certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def forward(self, method, path, headers, body):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)) as connection:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            drop = {"content-length", "connection", "transfer-encoding", "date", "server"}
            kept = {name.lower(): value for name, value in response.getheaders() if name.lower() not in drop}
            return Answer(response.status, response.read(), kept)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def is_data(path):
    """Whether a request is about one of the probe's own data objects."""
    return "/data-" in path


# -- what is in the bucket, and the work of the probe


def keys(s3):
    """Of all objects in the bucket."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def uploads(s3):
    """Keys of uploads in parts that have not ended."""
    return [upload["Key"] for upload in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


@contextlib.contextmanager
def work(tmp_path, op, size, concurrency=4, **more):
    """The work of the probe, and its context."""
    from storage_io import object_store

    ctx = context(tmp_path)
    made = object_store.prepare(ctx, op, concurrency, size, **(SMALL | more))
    try:
        yield made, ctx
    finally:
        made.close()


def sample(made):
    """One sample, as it is measured."""
    made.reset()
    made.run()
    made.note()


def data(s3):
    """Keys of the probe's own data objects."""
    return [key for key in keys(s3) if is_data(key)]

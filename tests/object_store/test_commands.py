"""The whole command: no secret is kept, mistakes are one line, and nothing is left however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clustergauge import processes
from tests.objects import KEY, SECRET, TOKEN, URL, data, error_of, is_data, keys
from tests.on_disk import ROOT


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
    for secret in (SECRET, f"127.0.0.1:{proxy.port}"):
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

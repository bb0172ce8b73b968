"""``--ceilings`` on the command line: a file of one's own decides what is invalid, and the run remembers it."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from pathlib import Path

import msgspec
import pytest

import run_suite
from clustergauge.model import Gpu, Workload
from clustergauge.store import RunFolder, load
from tests import made

OWN = """
[[parts]]
name = "Prototype"
device_names = ["Prototype 1"]
matrix_clock_mhz = {{ value = 1500, firm = true, source = ["lab notes"] }}
peak.bf16 = {{ value = {peak}, firm = {firm}, source = ["lab notes"] }}
"""


def written(name: str = "own.toml", peak: float = 1.0, firm: bool = True) -> Path:
    path = Path(name)
    path.write_text(OWN.format(peak=peak, firm=str(firm).lower()))
    return path


@pytest.fixture(autouse=True)
def _signals_and_path_as_they_were(monkeypatch, tmp_path):
    """The command line takes signals, and adds to the path, for a process of its own.  Files have short names here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def ran(tmp_path):
    """The folder of a run that reached 2 TFLOP/s on a part that nobody but its owner knows."""
    record = made.record(device="cuda:0", work=Workload(flops=2 * 10**12, dtype="bf16", bound="compute"))
    gpu = Gpu(index=0, name="Prototype 1", uuid="GPU-0", sm_clock_max_mhz=1500.0)
    machine = msgspec.structs.replace(made.machine(), gpus=[gpu])
    run = made.run([record])
    with RunFolder.create(tmp_path / "results", run) as folder:
        folder.write_machine(machine)
        folder.append(record)
        folder.finish(msgspec.structs.replace(run, finished=made.STARTED))
    return folder.path


def test_above_a_firm_ceiling_of_ones_own_a_number_is_invalid(ran, capsys):
    assert run_suite.main(["report", str(ran)]) == 0
    assert "ceilings:" not in capsys.readouterr().out
    own = written()
    assert run_suite.main(["report", str(ran), "--ceilings", str(own)]) == 3
    text = " ".join(capsys.readouterr().out.split())
    assert "200 % 1.0 % invalid" in text
    assert "above the ceiling of 1.00 TFLOP/s (Prototype, bf16 dense at 1500 MHz: lab notes)" in text
    digest = hashlib.sha256(own.read_bytes()).hexdigest()[:12]
    assert f"ceilings: {own} (SHA-256 {digest}…); when the run was made: ours alone" in text
    assert run_suite.main(["report", str(ran), "--ceilings", str(own), "--format", "json"]) == 3
    said = capsys.readouterr()
    assert [v["verdict"] for v in json.loads(said.out)["verdicts"]] == ["invalid"]
    assert said.err.startswith(f"ceilings: {own} (SHA-256")


def test_above_an_estimate_of_ones_own_a_number_is_doubted(ran, capsys):
    assert run_suite.main(["report", str(ran), "--ceilings", str(written(firm=False))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "~200 % 1.0 % ok" in text
    assert "warning: above the ceiling: matmul: compute 2.00 TFLOP/s, at most 1.00 TFLOP/s: Prototype" in text
    assert run_suite.main(["report", str(ran), "--ceilings", str(written(peak=4.0))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " 50 % 1.0 % ok" in text
    assert "above the ceiling" not in text


@pytest.mark.parametrize("verb", ["run", "report"])
def test_a_mistake_in_the_file_is_named_with_its_field_before_anything_runs(tmp_path, ran, verb, capsys):
    words = {"run": ["-k", "no such case"], "report": [str(ran)]}[verb]
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[[parts]]\nname = "x"\nbandwidth_gb_s = { value = -1, source = ["s"] }\n')
    assert run_suite.main([verb, *words, "--ceilings", str(wrong)]) == 2
    assert f"{wrong}: Expected `float` > 0.0 - at `$.parts[0].bandwidth_gb_s.value`" in capsys.readouterr().err
    assert run_suite.main([verb, *words, "--ceilings", str(tmp_path / "none.toml")]) == 2
    assert f"no file of ceilings {tmp_path / 'none.toml'}" in capsys.readouterr().err


def test_a_run_remembers_its_ceilings_and_a_redraw_says_which_were_used(tmp_path, capsys):
    suite = tmp_path / "s.toml"
    suite.write_text(
        'title = "t"\nbudget_s = 0.1\n[[cases]]\nprobe = "misbehave"\nhow = "well"\nworld = "serial"\nphase = "run"\n'
    )
    own, results = written(), str(tmp_path / "results")
    words = ["--suite", str(suite), "--probes", "tests.faults.misbehaving", "-o", results, "--ceilings", str(own)]
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    named = f"{own} (SHA-256 {digest[:12]}…)"

    def text() -> str:
        return " ".join(capsys.readouterr().out.split())

    assert run_suite.main(["run", *words]) == 0
    assert f"ceilings: {named} 1 ok" in text()
    (path,) = Path(results).iterdir()
    settings = load(path).run.settings
    assert (settings["ceilings"], settings["ceilings_sha256"]) == (str(own), digest)
    assert run_suite.main(["report", str(path)]) == 0  # by the copy that it keeps
    assert f"ceilings: {path / 'ceilings.toml'} (SHA-256 {digest[:12]}…) 1 ok" in text()
    moved = own.rename("moved.toml")
    assert run_suite.main(["report", str(path), "--ceilings", str(moved)]) == 0
    assert f"ceilings: {moved} (SHA-256 {digest[:12]}…) 1 ok" in text()
    other = written(peak=3.0)
    resume = ["run", "--resume", "latest", "--probes", "tests.faults.misbehaving", "-o", results, "--ceilings", str(other)]
    assert run_suite.main(resume) == 0
    assert f"ceilings: {other} (SHA-256 " in (said := text())
    assert f"when the run was made: {named}" in said

"""Verdicts kept beside the records: decided anew by `verify`, altered on purpose in every way, and by a mended formula."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from clustergauge import catalogue, code, criteria, exits, judgement, stats, store, sums, verdicts
from clustergauge.errors import UsageError
from clustergauge.model import Run
from clustergauge.verdicts import Asked
from tests.command_line import called
from tests.run_folders import RUN_ID, a_record, a_run, files_of, fill

ROOT = Path(__file__).parent.parent
ACCEPT = """title = "a test"

[[criteria]]
case = "spin/*"
metric = "time"
limit = 150
unit = "ns"

[[criteria]]
case = "spin/*"
metric = "time"
limit = 200
unit = "ns"
source = "the other"
"""


def judged(
    parent: Path, text: str = ACCEPT, baseline: Path | None = None, parts: Path | None = None, run: Run | None = None
) -> Path:
    """A run of three launches that took 175 ns (median), with what was decided on it."""
    path = fill(parent, run=run)
    loaded = store.load(path)
    against = store.load(baseline) if baseline else None
    acceptance = criteria.parse(text, "a.toml") if text else criteria.NOTHING
    asked = Asked(acceptance, against, catalogue.load(parts) if parts else None, name="a.toml" if text else "", text=text)
    found = verdicts.judge(loaded.records, loaded.run.planned, loaded.machines, asked)
    judgement.keep(loaded, asked, found, exits.exit_code(loaded.records, found, loaded.run.planned))
    return path


def verified(path: Path, **more) -> tuple[int, str]:
    checked = judgement.verify(path, path.parent, **more)
    return checked.code, "\n".join(checked.said)


def resummed(path: Path) -> None:
    """What a careful forger does: checksums that fit what is there now."""
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.sha256").write_text("".join(hashlib.sha256(line).hexdigest() + "\n" for line in lines))
    (path / "SHA256SUMS").write_bytes(sums.text(path))


def altered(path: Path, name: str, old: str, new: str) -> None:
    text = (path / name).read_text()
    assert old in text
    (path / name).write_text(text.replace(old, new, 1))


def test_what_was_decided_follows_from_the_records(tmp_path):
    path = judged(tmp_path)
    assert set(files_of(path)) == {
        "run.json", "machines/m1.json", "records.jsonl", "records.sha256", "SHA256SUMS", "verdicts.json", "acceptance.toml",
    }  # fmt: skip
    assert (path / "acceptance.toml").read_text() == ACCEPT
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, capture_output=True, check=False)
    assert (done.returncode, done.stdout.count(b": OK"), done.stderr) == (0, 6, b"")
    status, said = verified(path)
    assert status == 0, said
    assert "all 2 verdicts and exit code 1 follow from the records" in said
    assert hashlib.sha256((path / "SHA256SUMS").read_bytes()).hexdigest() in said


@pytest.mark.parametrize("name", ["run.json", "machines/m1.json", "records.jsonl", "verdicts.json", "acceptance.toml"])
def test_any_byte_changed_is_named_with_its_file_and_line(tmp_path, name):
    path = judged(tmp_path)
    content = (path / name).read_bytes()
    for index in {0, len(content) // 3, len(content) // 2, len(content) - 2}:
        changed = bytearray(content)
        changed[index] ^= 0x15
        (path / name).write_bytes(changed)
        status, said = verified(path)
        assert status == 2
        assert f"{path}/{name} line {content[:index].count(10) + 1}: does not match its checksum" in said
        (path / name).write_bytes(content)
    assert verified(path)[0] == 0


@pytest.mark.parametrize("name", ["verdicts.json", "acceptance.toml"])
def test_what_was_taken_away_is_missed(tmp_path, name):
    path = judged(tmp_path)
    (path / name).unlink()
    status, said = verified(path)
    assert (status, f"{path}/{name}: missing, though SHA256SUMS line" in said) == (2, True)


def test_a_verdict_that_does_not_follow_is_named_with_both_values(tmp_path):
    path = judged(tmp_path)
    altered(path, "verdicts.json", '"verdict":"FAIL"', '"verdict":"pass"')
    resummed(path)
    status, said = verified(path)
    assert status == 3
    assert f"{path}/verdicts.json line 2: spin/ns=100 on cpu:0 of m1: says pass, 1.75e-07 s, bound 1.5e-07" in said
    assert "the records say FAIL, 1.75e-07 s" in said


FORGERIES = {
    "a sample": ("records.jsonl", "1.5e-7,2e-7", "1.1e-7,1.2e-7", "says FAIL, 1.75e-07 s"),
    "a bound": ("acceptance.toml", "limit = 150", "limit = 300", "bound 1.5e-07"),
    "a value": ("verdicts.json", '"value":1.75e-7', '"value":1.74e-7', "says FAIL, 1.74e-07 s, bound 1.5e-07"),
    "the exit code": ("verdicts.json", '"exit_code":1', '"exit_code":0', "line 1: says exit code 0, the records say 1"),
    "another case": ("verdicts.json", '"case":"spin/ns=100"', '"case":"spun"', "line 2: spun on cpu:0 of m1: says FAIL"),
    "a source": ("verdicts.json", '"source":"the other"', '"source":"nobody"', "the records say nothing of it"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_with_checksums_to_match_contradicts_itself(tmp_path, name):
    path = judged(tmp_path)
    file, old, new, told = FORGERIES[name]
    altered(path, file, old, new)
    resummed(path)
    status, said = verified(path)
    assert status == 3, said
    assert told in said
    assert "the folder was altered" in said


def test_a_verdict_left_out_is_told(tmp_path):
    path = judged(tmp_path)
    lines = (path / "verdicts.json").read_text().splitlines(keepends=True)
    (path / "verdicts.json").write_text("".join([lines[0], lines[2], lines[3]]))
    resummed(path)
    status, said = verified(path)
    assert status == 3
    assert "verdicts.json: spin/ns=100 on cpu:0 of m1: says nothing, the records say FAIL" in said


def test_a_mended_formula_is_no_tampering(tmp_path, monkeypatch):
    """The same folder, read by code that counts otherwise: it says who decided, and that it cannot tell."""
    path = judged(tmp_path)
    monkeypatch.setattr(stats, "median", lambda values: 1e-7)
    assert verified(path)[0] == 3  # as if it were the code that decided
    monkeypatch.setattr(code, "digest", lambda: "mended")
    status, said = verified(path)
    assert status == 4
    assert "decided by ClusterGauge 0.1.0, code " in said
    assert "this is 0.1.0, code mended: formulas were mended since, or something was altered" in said


def test_other_code_that_finds_the_same_is_content(tmp_path, monkeypatch):
    path = judged(tmp_path)
    monkeypatch.setattr(code, "digest", lambda: "other")
    assert verified(path)[0] == 0


def test_what_was_put_there_later_has_no_checksum(tmp_path):
    path, kept = judged(tmp_path / "a"), fill(tmp_path / "b")
    (kept / "verdicts.json").write_bytes((path / "verdicts.json").read_bytes())
    status, said = verified(kept)
    assert (status, said) == (2, f"{kept}/verdicts.json: has no checksum in SHA256SUMS")
    assert store.load(kept).notes == []  # the records are read all the same


def test_an_old_run_has_checksums_alone(tmp_path):
    status, said = verified(fill(tmp_path))
    assert status == 0
    assert "intact (3 records)" in said
    assert "no verdicts were kept (an earlier version measured it" in said


def test_a_run_that_goes_on_forgets_what_was_decided(tmp_path):
    path = judged(tmp_path)
    with store.reopen(path):
        pass
    assert sums.judged(path) == []
    assert "it has not ended" in verified(path)[1]


def test_a_baseline_is_found_beside_the_run_and_must_be_as_it_was(tmp_path):
    base = fill(tmp_path, run=a_run(run_id="base"), record=lambda n: a_record(n, run_id="base"))
    path = judged(tmp_path, "", base)
    status, said = verified(path)
    assert status == 0, said
    elsewhere = tmp_path / "elsewhere"
    base.rename(elsewhere)
    with pytest.raises(UsageError, match="held against base, which is not beside it: name it with --baseline RUN"):
        verified(path)
    assert verified(path, baseline=elsewhere)[0] == 0
    altered(elsewhere, "records.jsonl", "1e-7", "2e-7")
    resummed(elsewhere)
    with pytest.raises(UsageError, match="not the baseline base as it was: its records or machines differ"):
        verified(path, baseline=elsewhere)


def test_a_users_ceilings_are_kept_with_the_verdicts(tmp_path):
    (tmp_path / "parts.toml").write_text(
        '[[parts]]\nname = "a CPU"\ndevice_names = ["a CPU"]\nbandwidth_gb_s = { value = 10, firm = true, source = ["me"] }\n'
    )
    path = judged(tmp_path / "r", "", None, tmp_path / "parts.toml")
    assert (path / "ceilings.toml").read_text() == (tmp_path / "parts.toml").read_text()
    assert verified(path)[0] == 0
    altered(path, "ceilings.toml", "value = 10", "value = -1")
    resummed(path)
    with pytest.raises(UsageError, match=r"ceilings.toml: "):
        verified(path)


def test_a_full_disk_costs_the_verdicts_alone(tmp_path, monkeypatch):
    path = fill(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(store.StoreError, match="No space left on device: the verdicts are not kept, the records are"):
        store.keep(path, {"verdicts.json": b"{}"})
    monkeypatch.undo()
    assert store.load(path).notes == []


def document(more: str, run_id: str = RUN_ID) -> bytes:
    return f'{{"run_id":"{run_id}","version":"","code":"","exit_code":0,{more}}}'.encode()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"schema":"9.0"}', "verdicts.json"),
        (b"[" * 100_000, "verdicts.json"),
        (document('"schema":"9.0","verdicts":[]'), "a newer ClusterGauge (schema 9.0)"),
        (document('"verdicts":[]', "x"), "run_id 'x' is of another run"),
        (document('"verdicts":[7]'), "$.verdicts[0]"),
        (document('"verdicts":[{"case":"a","verdict":"fine"}]'), "$.verdicts[0].verdict"),
        (document('"baseline":{"run_id":"../x","facts":""},"verdicts":[]'), "baseline '../x' cannot name a folder"),
        (document('"accept":"a","verdicts":[]'), "acceptance.toml: missing"),
    ],
)
def test_verdicts_that_are_none_are_one_line(tmp_path, content, told):
    path = fill(tmp_path)
    store.keep(path, {"verdicts.json": content})
    with pytest.raises(UsageError) as caught:
        verified(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_says_it_and_loads_no_device_library(tmp_path):
    path = judged(tmp_path)
    words = f"import sys, run_suite; code = run_suite.main(['verify', {str(path)!r}]); print(code, '|'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "all 2 verdicts and exit code 1 follow" in done.stdout
    status, _, modules = done.stdout.splitlines()[-1].partition(" ")
    assert status == "0"
    assert not {*modules.split("|")} & {"torch", "triton", "mpi4py", "pynvml", "cupy"}


def test_a_line_of_the_file_is_a_verdict(tmp_path):
    path = judged(tmp_path)
    lines = (path / "verdicts.json").read_bytes().splitlines()
    kept = msgspec.json.decode((path / "verdicts.json").read_bytes(), type=judgement.Judgement)
    assert [msgspec.json.decode(line.rstrip(b","), type=judgement.Verdict) for line in lines[1:-1]] == kept.verdicts


# -- shown again


def report(path: Path, *words: str) -> tuple[int, list[dict], str]:
    """Exit code, verdicts and remarks of ``report``, from the folder that holds the run."""
    done = called("report", str(path), "-o", ".", "--format", "json", *words, cwd=path.parent)
    return done.returncode, msgspec.json.decode(done.stdout)["verdicts"] if done.stdout else [], done.stderr


def test_a_report_judges_by_what_the_run_was_judged_by(tmp_path):
    path = judged(tmp_path)
    kept = msgspec.json.decode((path / "verdicts.json").read_bytes())
    code, found, said = report(path)
    assert (code, said) == (kept["exit_code"], "")
    assert [(v["verdict"], v["bound"], v["source"]) for v in found] == [
        (v["verdict"], v["bound"], v["source"]) for v in kept["verdicts"]
    ]
    assert found[0]["verdict"] == "FAIL"


def test_a_report_by_other_criteria_says_so(tmp_path):
    path = judged(tmp_path)
    (tmp_path / "other.toml").write_text(ACCEPT.replace("150", "1500").replace("200", "2000"))
    code, found, said = report(path, "--accept", "other.toml")
    assert [v["bound"] for v in found] == pytest.approx([1.5e-6, 2e-6])
    assert code != 1
    assert said == "judged by other.toml; when the run ended: by a.toml\n"
    (tmp_path / "same.toml").write_text(ACCEPT)
    assert report(path, "--accept", "same.toml")[2] == ""
    for form in ("text", "html"):
        assert "judged by other.toml; when the run ended: by a.toml" in " ".join(
            report_text(path, "--accept", "other.toml", "--format", form).split()
        )


def report_text(path: Path, *words: str) -> str:
    return called("report", str(path), "-o", ".", *words, cwd=path.parent).stdout


def test_criteria_for_a_run_that_had_none_are_said_too(tmp_path):
    path = judged(tmp_path, text="")
    (tmp_path / "other.toml").write_text(ACCEPT)
    code, found, said = report(path, "--accept", "other.toml")
    assert (code, said) == (1, "judged by other.toml; when the run ended: by no criteria\n")
    assert len(found) == 2


def test_other_criteria_help_where_the_kept_ones_cannot_be_read(tmp_path):
    path = judged(tmp_path)
    (path / "acceptance.toml").write_text('"\\u001b[2J" = 1')
    resummed(path)
    code, _, said = report(path)
    assert (code, said.count("\n"), "\x1b" in said) == (2, 1, False)
    assert "acceptance.toml" in said
    (tmp_path / "other.toml").write_text(ACCEPT)
    assert report(path, "--accept", "other.toml")[0] == 1


def test_the_baseline_is_found_again_or_missed_aloud(tmp_path):
    base = fill(
        tmp_path / "there", run=msgspec.structs.replace(a_run(), run_id="base"), record=lambda n: a_record(n, run_id="base")
    )
    path = judged(tmp_path / "runs", text="", baseline=base)
    code, _, said = report(path)
    words = "this run was held against base, which is not beside it: name it with --baseline RUN"
    assert (code, said) == (4, f"run_suite.py: judged without its baseline: {words}\n")
    code, found, said = report(path, "-o", str(tmp_path / "there"))
    kept = msgspec.json.decode((path / "verdicts.json").read_bytes())
    assert (code, said, {v["source"] for v in found}) == (kept["exit_code"], "", {"baseline base"})
    assert [v["verdict"] for v in found] == [v["verdict"] for v in kept["verdicts"]]
    other = fill(
        tmp_path / "there", run=msgspec.structs.replace(a_run(), run_id="other"), record=lambda n: a_record(n, run_id="other")
    )
    code, found, said = report(path, "--baseline", str(other))
    assert (code, said, {v["source"] for v in found}) == (
        kept["exit_code"],
        "baseline: other; when the run ended: base\n",
        {"baseline other"},
    )


def test_a_run_is_not_held_against_itself(tmp_path):
    """It would reach all of itself: a pass that says nothing, by whichever name it comes."""
    path = judged(tmp_path)
    copy = shutil.copytree(path, tmp_path / "elsewhere" / "copy")
    for name in (path, copy):
        code, found, said = report(path, "--baseline", str(name))
        assert (code, found) == (2, [])
        assert said.startswith(f"run_suite.py: --baseline {path.name}: that is this run itself")
        assert said.count("\n") == 1
    done = called("compare", str(path), str(copy), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "run_suite.py: compare: the same run is named twice\n")


def test_what_has_no_checksum_is_left_aside(tmp_path):
    path = judged(tmp_path)
    text = (path / "SHA256SUMS").read_text()
    (path / "SHA256SUMS").write_text("".join(line for line in text.splitlines(True) if "acceptance.toml" not in line))
    recalled = judgement.recall(store.load(path), tmp_path, Asked())
    assert recalled.asked == Asked()
    (note,) = recalled.notes
    assert "acceptance.toml: has no checksum in SHA256SUMS" in note


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("words", [["--accept", "a.toml"], ["--accept=a.toml", "--baseline", "b"], ["--ceilings", "c.toml"]])
def test_a_run_that_ended_before_it_was_judged_does_not_pass_without_its_criteria(tmp_path, words, finished):
    """The disk was full, or the process was killed: all is measured, and nothing was decided."""
    path = fill(tmp_path, records=4, finished=finished, run=a_run(command=["run_suite.py", *words]))
    code, found, said = report(path)
    flags = " and ".join(word.partition("=")[0] for word in words if word.startswith("--"))
    why = "an earlier version measured it, or it was stopped before it was judged" if finished else "it has not ended"
    assert said == f"run_suite.py: begun with {flags}, of which nothing is kept ({why}): judged without; say it again\n"
    assert (code, {v["verdict"] for v in found}) == (4, {"unreferenced"})
    (owing,) = ET.fromstring(called("report", str(path), "--format", "junit").stdout).iter("error")
    assert (owing.get("type"), f"begun with {flags}" in owing.get("message", "")) == ("not measured", True)
    if words[0] == "--accept":
        (tmp_path / "a.toml").write_text(ACCEPT)
        code, found, said = report(path, "--accept", "a.toml")
        assert (code, said) == (1, "")
        assert len(found) == 2


def test_a_failure_is_not_undone_by_taking_its_checksum_away(tmp_path):
    path = judged(tmp_path, run=a_run(command=["run_suite.py", "--accept", "a.toml"]))
    assert report(path)[0] == 1
    text = (path / "SHA256SUMS").read_text()
    (path / "SHA256SUMS").write_text("".join(line for line in text.splitlines(True) if "verdicts.json" not in line))
    code, _, said = report(path)
    assert code == 4
    assert "verdicts.json: has no checksum in SHA256SUMS" in said
    assert "begun with --accept, of which nothing is kept: judged without; say it again" in said


def test_a_run_that_was_not_judged_is_shown_by_what_is_given(tmp_path):
    given = Asked(name="a.toml", text=ACCEPT)
    assert judgement.recall(store.load(fill(tmp_path)), tmp_path, given) == judgement.Recalled(given)

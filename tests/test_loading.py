"""Reading a run folder that nobody vouches for: whatever is wrong with it is one line that names the place."""

import contextlib
import hashlib
import json
import os
import shutil
import zlib

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st

from clustergauge import folder, loading, sums
from clustergauge.errors import UsageError
from clustergauge.model import Place, Run
from clustergauge.store import RunFolder, load, reopen, verify
from tests.run_folders import RUN_ID, a_machine, a_record, a_run, files_of, fill, in_memory


def encoded(record):
    return msgspec.json.encode(record) + b"\n"


def changed(**fields):
    """The line of a record with some of its JSON replaced."""
    return json.dumps(json.loads(encoded(a_record())) | fields).encode() + b"\n"


def write_lines(path, *lines):
    """Records as somebody else might write them, with checksums that match."""
    (path / "records.jsonl").write_bytes(b"".join(lines))
    sums = [hashlib.sha256(line).hexdigest().encode() + b"\n" for line in lines]
    (path / "records.sha256").write_bytes(b"".join(sums))


def refusal(path):
    """What `load` says; it must be one printable line that does not flood a terminal."""
    with pytest.raises(UsageError) as caught:
        load(path)
    told = str(caught.value)
    assert told.isprintable()
    assert len(told) < 1000 + len(str(path))
    return told


@pytest.fixture
def path(tmp_path):
    """An unfinished run with one record, which `write_lines` may replace."""
    return fill(tmp_path, 1, finished=False)


# -- one line that is not a record


LINES = {
    "an empty line": (b"\n", "Input data was truncated"),
    "broken JSON": (encoded(a_record())[:40] + b"\n", "JSON is malformed"),
    "two documents": (encoded(a_record())[:-1] * 2 + b"\n", "trailing characters"),
    "binary junk": (bytes(range(11, 256)) + b"\n", "invalid"),
    "a text that is not UTF-8": (encoded(a_record()).replace("é".encode(), b"\xff"), "invalid"),
    "NaN": (encoded(a_record()).replace(b"1.5e-7", b"NaN"), "invalid character"),
    "infinity": (encoded(a_record()).replace(b"1.5e-7", b"1e999"), "Number out of range"),
    "an integer without end": (encoded(a_record()).replace(b'"launch":0', b'"launch":' + b"9" * 5000), "out of range"),
    "not an object": (b"[1, 2]\n", "Expected `object`, got `array`"),
    "an unknown field": (changed(verdict="pass"), "Object contains unknown field `verdict`"),
    "an unknown field with a hostile name": (changed(**{"\x1b[2J" + "x" * 10_000: 1}), "unknown field `�[2Jxxx"),
    "a missing field": (encoded(a_record()).replace(f'"run_id":"{RUN_ID}",'.encode(), b""), "missing required field `run_id`"),
    "a wrong type": (changed(ranks="1"), "Expected `int`, got `str` - at `$.ranks`"),
    "a wrong word": (changed(status="fine"), "Invalid enum value 'fine' - at `$.status`"),
    "a boolean for a number": (changed(launch=True), "Expected `int`, got `bool`"),
    "a deep nest": (b"[" * 100_000 + b"\n", "Expected `object`, got `array`"),
    "a deep nest of objects": (b'{"params":' * 100_000 + b"\n", "got `object` - at `$.params[...]`"),
    "a deep nest in an unknown field": (changed(new="REST").replace(b'"REST"', b"[" * 50_000 + b"]" * 50_000), "field `new`"),
    "a deep nest in a field": (changed(reason="REST").replace(b'"REST"', b"[" * 50_000 + b"]" * 50_000), "Expected `str`"),
    "another run's record": (changed(run_id="20200101-000000-aaaa"), f"is of another run (this is {RUN_ID})"),
    "a machine nobody described": (changed(machine_id="m2"), "machine_id 'm2' has no description in machines/"),
    "a machine outside": (changed(machine_id="../../m1"), "machine_id '../../m1' has no description"),
    "a case nobody planned": (changed(launch=77), "launch 77, is not planned in run.json"),
    "a case with other parameters": (changed(params={"ns": 200}), "does not follow from its probe and params"),
    "a case with the same number in another type": (changed(params={"ns": 100.0}), "does not follow from its probe"),
    "a probe that is not the case's": (changed(probe="other"), "does not follow from its probe and params"),
    "a launch beyond reason": (changed(launch=10**40), "launch is beyond 10²⁴"),
    "a newer major version": (changed(schema="2.0", new=1), "written by a newer ClusterGauge (schema 2.0); this one reads 1.x"),
    "a newer minor version's field": (
        changed(schema="1.7", new=1),
        "unknown field `new` (written by a newer ClusterGauge, schema 1.7; this one knows 1.0)",
    ),
    "an older major version": (changed(schema="0.9"), "schema 0.9 is unknown; this ClusterGauge reads 1.x"),
    "a version that is none": (changed(schema="1"), "schema '1' is not a version"),
    "a hostile version": (changed(schema="2\x1b[2J"), "schema '2�[2J' is not a version"),
    "10 MB of reason": (changed(reason="x" * 10_000_000), "a text of 10000000 characters (at most 100000): 'xxxx"),
    "10 MB of case": (changed(case="x" * 10_000_000), "is not a name (1 to 1000 printable characters)"),
    "10 MB of key": (changed(telemetry={"x" * 10_000_000: 1e400}), "JSON is malformed"),
    "10 MB of key in a count": (changed(counters={"device_bytes": {"x" * 10_000_000: -1}}), "xxx…'] is -1"),
    "a key that steers a terminal": (changed(telemetry={"\x1b[2J": 1}), "key '�[2J' is not printable"),
    "a device that steers a terminal": (changed(device="\x1b[2J"), "device '�[2J' is not a name"),
    "a time that is none": (changed(started="2026-02-30T00:00:00Z"), "started '2026-02-30T00:00:00Z' is not a time"),
    "ok without samples": (changed(measurement=None), "status is ok but there is no measurement"),
    "ok without work": (changed(workload=None), "status is ok but there is no workload"),
    "skipped with samples": (changed(status="skipped"), "status is skipped but there is a measurement"),
    "a count below zero": (changed(workload={"flops": -1}), "workload.flops is -1"),
    "a count beyond reason": (changed(workload={"flops": 10**30}), "workload.flops is beyond 10²⁴"),
    "a rank twice": (changed(placement=[{"rank": 0, "host": "a"}] * 2), "placement[1].rank 0 is not one of 1 ranks, or is given"),
    "a rank too many": (changed(placement=[{"rank": 1, "host": "a"}]), "placement[0].rank 1 is not one of 1 ranks"),
    "a host that steers": (changed(placement=[{"rank": 0, "host": "a\nb"}]), "placement[0].host 'a b' is not a name"),
}


def sampled(**fields):
    return changed(measurement={"clock": "wall", "cache": "none", "samples_s": [1.0, 2.0]} | fields)


LINES |= {
    "a time of zero": (sampled(samples_s=[1.0, 0.0]), "measurement.samples_s[1] is 0.0: a time is more than 0 s"),
    "a time below zero": (sampled(samples_s=[-1.0]), "measurement.samples_s[0] is -1.0"),
    "all samples warm-up": (sampled(warmup_cut=2), "none of 2 samples is left after the warm-up"),
    "more warm-up than samples": (sampled(warmup_cut=3), "measurement.warmup_cut is 3 of 2 samples"),
    "warm-up below zero": (sampled(warmup_cut=-1), "measurement.warmup_cut is -1"),
    "no iterations": (sampled(iterations_per_sample=0), "measurement.iterations_per_sample is 0"),
    "starts of other samples": (sampled(sample_start_s=[0.0]), "measurement.sample_start_s has 1 values for 2 samples"),
    "a loop below zero": (sampled(loop_mean_s=-1.0), "measurement.loop_mean_s[0] is -1.0"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_no_sound_record_is_refused(path, name):
    line, told = LINES[name]
    write_lines(path, encoded(a_record(1)), line)
    said = refusal(path)
    assert said.startswith(f"{path}/records.jsonl line 2: "), said
    assert told in said
    assert verify(path) == []  # the checksums are right: it was written like this
    with pytest.raises(UsageError):
        reopen(path)


def test_a_second_record_of_one_case_is_refused_with_both_lines(path):
    write_lines(path, encoded(a_record(0)), encoded(a_record(1)), encoded(a_record(0, status="error", measurement=None)))
    assert refusal(path) == f"{path}/records.jsonl line 3: 'spin/ns=100' on cpu:0, launch 0, is on line 1 too"


def test_a_newer_minor_version_without_news_is_read(path):
    write_lines(path, changed(schema="1.7"))
    assert load(path).records[0].schema == "1.7"


def test_text_that_steers_a_terminal_is_read_as_harmless(path):
    write_lines(path, changed(reason="a\x1b[2J\u202eb", settings={"note": "c\td\x9b"}))
    record = load(path).records[0]
    assert (record.reason, record.settings["note"]) == ("a�[2J�b", "c d�")


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
@example(b"")
@example(b"null")
@example(b"\n\n")
def test_any_bytes_for_a_record_are_refused_in_one_line(junk):
    with in_memory() as parent:
        path = fill(parent, 0, finished=False)
        write_lines(path, junk.replace(b"\n", b" ") + b"\n")
        assert refusal(path).startswith(f"{path}/records.jsonl line 1: ")


# -- run.json and the machines


RUNS = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "binary": lambda text: bytes(range(256)),
    "deep": lambda text: b"[" * 100_000,
    "an unknown field": lambda text: text.replace(b'"code"', b'"kode"'),
    "a newer version": lambda text: text.replace(b'"1.0"', b'"3.1"'),
    "another run's": lambda text: text.replace(RUN_ID.encode(), b"../../etc"),
    "a plan twice": lambda text: text.replace(b'"launch": 1', b'"launch": 0'),
    "a case that is not its probe's": lambda text: text.replace(b"spin/ns=100", b"spin/ns=200", 1),
    "no time": lambda text: text.replace(b"2026-11-23T", b"2026-13-23T"),
    "10 MB of text": lambda text: text.replace(b'"quick"', b'"' + b"q" * 10_000_000 + b'"'),
    "too long": lambda text: b" " * (65 << 20),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_not_sound_is_refused(path, name):
    file = path / "run.json"
    file.write_bytes(RUNS[name](file.read_bytes()))
    assert refusal(path).startswith(f"{file}: ")


MACHINES = {
    "broken": (b"{", "truncated"),
    "another's": (msgspec.json.encode(a_machine(machine_id="m2")), "describes another machine, 'm2'"),
    "without a name": (msgspec.json.encode(a_machine(machine_id="../m1")), "machine_id '../m1' cannot name a file"),
    "hostless": (msgspec.json.encode(a_machine(host="")), "host '' is not a name"),
    "of memory below zero": (msgspec.json.encode(a_machine(memory_bytes=-5)), "memory_bytes is -5"),
    "newer": (msgspec.json.encode(a_machine(schema="9.0")), "written by a newer ClusterGauge (schema 9.0)"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_that_is_not_sound_is_refused(path, name):
    content, told = MACHINES[name]
    (path / "machines" / "m1.json").write_bytes(content)
    said = refusal(path)
    assert said.startswith(f"{path}/machines/m1.json: ")
    assert told in said


@pytest.mark.parametrize("name", ["m1", "m1.txt", "a b.json", "\x1b.json"])
def test_a_file_that_describes_no_machine_is_refused(path, name):
    (path / "machines" / name).write_bytes(b"{}")
    assert "not a machine description (machines/<machine_id>.json)" in refusal(path)


# -- things that are not files


FILES = ("run.json", "records.jsonl", "records.sha256", "machines/m1.json", "SHA256SUMS")


@pytest.mark.parametrize("name", FILES)
def test_a_symbolic_link_is_not_followed(tmp_path, name):
    path = fill(tmp_path)
    shutil.copy(path / name, tmp_path / "elsewhere")
    (path / name).unlink()
    (path / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(path) == f"{path}/{name}: a symbolic link has no place in a run folder"


def test_a_link_put_there_while_reading_is_not_followed_either(tmp_path):
    (tmp_path / "link").symlink_to(__file__)
    with pytest.raises(UsageError, match="link: a symbolic link has no place in a run folder"):
        folder.open_plain(tmp_path / "link")


@pytest.mark.parametrize("name", ["machines", "logs", ".lock", "another"])
def test_no_link_is_followed_wherever_it_lies(tmp_path, name):
    path = fill(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    if (path / name).is_dir():
        shutil.rmtree(path / name)
    else:
        (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(path) == f"{path}/{name}: a symbolic link has no place in a run folder"
    with pytest.raises(UsageError):
        reopen(path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a pipe", "a folder"])
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_folder_is_refused_and_not_waited_for(tmp_path, name, make):
    path = fill(tmp_path)
    (path / name).unlink()
    make(path / name)
    assert refusal(path) == f"{path}/{name}: not a regular file"
    assert verify(path) == [f"{path}/{name}: not a regular file"]


@pytest.mark.parametrize("name", ["run.json", "records.jsonl", "records.sha256", "machines", "machines/m1.json"])
def test_a_part_that_is_missing_is_named(tmp_path, name):
    path = fill(tmp_path)
    shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    assert name in refusal(path)


@pytest.mark.parametrize("name", ["", "file", "nowhere", "\x1b[2J", "x" * 300])
def test_what_is_no_run_folder_is_told(tmp_path, name):
    (tmp_path / "file").write_text("")
    told = refusal(tmp_path / name)
    for ask in (verify, reopen):
        with pytest.raises(UsageError) as caught:
            ask(tmp_path / name)
        assert str(caught.value) == told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(path):
    (path / "records.jsonl").chmod(0)
    assert refusal(path) == f"{path}/records.jsonl: Permission denied"


# -- changed after it was written


def test_any_byte_changed_anywhere_is_refused_with_its_place():
    with in_memory() as parent:
        path = fill(parent, 3)
        files = files_of(path)
        assert set(files) == {"run.json", "machines/m1.json", "records.jsonl", "records.sha256", "SHA256SUMS"}
        positions = st.sampled_from(sorted(files)).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, len(files[n]) - 1)))

        @given(positions, st.integers(1, 255))
        @settings(max_examples=600, deadline=None)
        def change(position, flip):
            name, index = position
            content = bytearray(files[name])
            content[index] ^= flip
            (path / name).write_bytes(content)
            said = refusal(path)
            assert said.startswith(f"{path}/")
            if name == "records.jsonl":
                line = files[name][:index].count(b"\n") + 1
                assert said.startswith(f"{path}/{name} line {line}: ")
            elif name == "records.sha256":
                assert "line " in said
                assert name in said
            else:
                assert "SHA256SUMS" in said
            assert verify(path)
            (path / name).write_bytes(files[name])

        change()
        assert load(path).notes == []


def test_any_byte_changed_in_the_records_of_an_unfinished_run_is_refused():
    with in_memory() as parent:
        path = fill(parent, 3, finished=False)
        content = (path / "records.jsonl").read_bytes()

        @given(st.integers(0, len(content) - 1), st.integers(1, 255))
        @settings(max_examples=200, deadline=None)
        def change(index, flip):
            (path / "records.jsonl").write_bytes(content[:index] + bytes([content[index] ^ flip]) + content[index + 1 :])
            assert refusal(path).startswith(f"{path}/records.jsonl line {content[:index].count(10) + 1}: ")
            assert verify(path)

        change()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_line_removed_doubled_or_moved_is_refused_or_noted(data):
    with in_memory() as parent:
        path = fill(parent, 3, finished=False)
        name = data.draw(st.sampled_from(["records.jsonl", "records.sha256"]))
        lines = (path / name).read_bytes().splitlines(keepends=True)
        other = data.draw(st.lists(st.sampled_from(lines), max_size=4).filter(lambda chosen: chosen != lines))
        (path / name).write_bytes(b"".join(other))
        one_more = {"records.jsonl": other == lines[:2], "records.sha256": other[:3] == lines}[name]
        if one_more:  # checksum than records: as if interrupted
            unwritten = f"{path}/records.sha256 line {max(3, len(other))}: has no record in records.jsonl"
            assert load(path).notes == [f"interrupted while writing: {unwritten}"]
        else:
            said = refusal(path)
            assert "line " in said
            assert verify(path)[0] == said


def test_sums_that_are_missing_are_noted(tmp_path):
    path = fill(tmp_path)
    (path / "SHA256SUMS").unlink()
    assert load(path).notes == ["the run ended but SHA256SUMS is missing: run.json and machines/ are unchecked"]
    assert verify(path) == [f"{path}/SHA256SUMS: missing, though the run ended"]


SUMS = {
    "of a file outside": (
        lambda text: text + f"{'0' * 64}  ../../etc/passwd\n",
        "line 7: not the checksum of a file of this run",
    ),
    "twice": (lambda text: text + text.splitlines(keepends=True)[0], "line 7: not the checksum of a file of this run"),
    "one left out": (lambda text: "".join(text.splitlines(keepends=True)[1:]), "has no checksum of run.json"),
    "in the other mode of sha256sum": (
        lambda text: text.replace("  ", " *", 1),
        "line 1: not the checksum of a file of this run",
    ),
    "without its last newline": (lambda text: text[:-1], "line 6: not the checksum of a file of this run"),
    "none": (lambda text: "", "has no checksum of machines/m1.json"),
    "junk": (lambda text: "\x1b[2J\n", "line 1: not the checksum of a file of this run: '�[2J'"),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_that_do_not_cover_the_files_are_refused(tmp_path, name):
    path = fill(tmp_path)
    change, told = SUMS[name]
    (path / "SHA256SUMS").write_text(change((path / "SHA256SUMS").read_text()))
    said = refusal(path)
    assert said.startswith(f"{path}/SHA256SUMS")
    assert told in said


def test_verifying_names_every_file_that_changed_and_every_one_left_out(tmp_path):
    path = fill(tmp_path)
    sums = (path / "SHA256SUMS").read_text()
    (path / "SHA256SUMS").write_text("".join(line for line in sums.splitlines(keepends=True) if "run.json" not in line))
    (path / "machines" / "m1.json").write_text("{}")
    assert verify(path) == [
        f"{path}/machines/m1.json line 1: does not match its checksum (SHA256SUMS line 1)",
        f"{path}/SHA256SUMS: has no checksum of run.json",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda sums: sums[:-65], "records.jsonl line 3: has no checksum in records.sha256"),
        (lambda sums: sums + b"junk", "records.sha256 line 4: what follows has no record in records.jsonl"),
        (lambda sums: sums + sums[:130], "records.sha256 line 4: what follows has no record in records.jsonl"),
        (lambda sums: sums[:-10], "records.sha256 line 3: not a SHA-256"),
        (lambda sums: sums.upper(), "records.sha256 line 1: not a SHA-256"),
        (lambda sums: b"x" * 10_000_000, "records.sha256 line 1: not a SHA-256"),
    ],
)
def test_checksums_that_are_not_those_of_the_records_are_refused_with_their_line(tmp_path, change, told):
    path = fill(tmp_path, 3, finished=False)
    (path / "records.sha256").write_bytes(change((path / "records.sha256").read_bytes()))
    assert refusal(path) == f"{path}/{told}"
    assert verify(path)[0] == f"{path}/{told}"


def test_a_machine_that_came_later_is_noticed(tmp_path):
    path = fill(tmp_path)
    (path / "machines" / "m2.json").write_bytes(msgspec.json.encode(a_machine(machine_id="m2")))
    assert refusal(path) == f"{path}/SHA256SUMS: has no checksum of machines/m2.json"


def test_many_broken_lines_are_named_up_to_twenty_and_then_counted(tmp_path):
    run = a_run(40)
    path = fill(tmp_path, 40, finished=False, run=run)
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.jsonl").write_bytes(b"".join(line.replace(b"spin", b"spun") for line in lines))
    problems = verify(path)
    assert problems[0] == f"{path}/records.jsonl line 1: does not match its checksum (records.sha256 line 1)"
    assert problems[20:] == [f"{path}/records.jsonl: and 20 more lines"]


def test_a_run_without_records_is_read(tmp_path):
    path = tmp_path / RUN_ID
    RunFolder.create(tmp_path, a_run(0)).close()
    assert (load(path).records, load(path).machines, verify(path)) == ([], {}, [])


def test_a_plan_that_was_read_before_vouches_for_nothing_else(tmp_path):
    path = fill(tmp_path, 1, finished=False)
    good = load(path)
    text = (path / "run.json").read_bytes()
    for old, new, told in (
        (b'"suite": "quick"', b'"suite": 7', "`$.suite`"),
        (b'"started": "', b'"started": "x', "is not a time"),
        (b'"launch": 0', b'"launch": -1', "launch is -1"),
        (b'"planned"', b'"planed"', "unknown field"),
    ):
        assert old in text
        (path / "run.json").write_bytes(text.replace(old, new, 1))
        assert told in refusal(path)
    (path / "run.json").write_bytes(text)
    again = load(path)
    assert again.run == good.run
    again.run.planned.clear()  # what one reader does to its own is not seen by the next
    assert load(path).run == good.run


def test_what_is_left_as_it_stands_is_a_run_otherwise():
    fields = {f.name: f for f in msgspec.structs.fields(Run)}
    heading = {f.name: f for f in msgspec.structs.fields(loading._Heading)}
    assert list(heading) == list(fields)
    for name in fields.keys() - {"planned"}:
        assert heading[name].type == fields[name].type
        assert heading[name].required == fields[name].required
    heading_of = msgspec.json.decode(msgspec.json.encode(a_run()), type=loading._Heading)
    assert msgspec.structs.asdict(heading_of) | {"planned": a_run().planned} == msgspec.structs.asdict(a_run())


@pytest.mark.parametrize("code", [*range(0x20), 0x7F])
def test_a_control_character_as_it_stands_is_refused_or_harmless(path, code):
    """JSON has none inside a text, but for the one that it forgot."""
    write_lines(path, encoded(a_record()).replace(b'"reason":""', b'"reason":"a' + bytes([code]) + b'b"'))
    if code == 0x7F:
        assert load(path).records[0].reason == "a\N{REPLACEMENT CHARACTER}b"
    else:
        refusal(path)


# -- a file that is whole is read in one go


NASTY = [
    None, True, 0, -1, 1, 0.5, 1e-16, 1e10, 1e300, 10**30, "", "x", "a\x7fb", "ü", "\u202e", "\ud800", "x" * 1001, [], [0.0], {},
]  # fmt: skip
PLACES = [
    ("run_id",), ("case",), ("probe",), ("params", "ns"), ("launch",), ("machine_id",), ("device",), ("ranks",), ("status",),
    ("reason",), ("started",), ("schema",), ("workload",), ("workload", "flops"), ("measurement",), ("measurement", "warmup_cut"),
    ("measurement", "samples_s"), ("measurement", "samples_s", 0), ("measurement", "sample_start_s"), ("measurement", "digest"),
    ("measurement", "loop_mean_s"), ("settings", "threads"), ("telemetry", "x"), ("counters", "health"), ("counters", "path"),
    ("placement",), ("placement", 0, "host"), ("placement", 0, "rank"), ("placement", 0, "device"), ("confirms",), ("news",),
]  # fmt: skip


def put(document, place, value):
    """The document with another value in a place, or one more field."""
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(PLACES), st.sampled_from(NASTY)), max_size=2), st.booleans())
@settings(max_examples=300)
def test_it_is_read_or_refused_as_line_by_line(changes, escaped):
    """As it stands and with values that mean harm, their checksums made to match: the same records, or the same words."""
    with in_memory() as parent:
        path = fill(parent, finished=False)
        lines = [json.loads(encoded(a_record(n, placement=[Place(rank=0, host="h")]))) for n in range(3)]
        for number, place, value in changes:
            with contextlib.suppress(LookupError, TypeError):  # the place is gone by an earlier change
                put(lines[number], place, value)
        texts = [json.dumps(line, ensure_ascii=escaped) for line in lines]
        write_lines(path, *(text.encode(errors="surrogatepass") + b"\n" for text in texts))
        assert outcome(path) == outcome(path, plainly=True)


def outcome(path, plainly=False):
    with pytest.MonkeyPatch.context() as patch:
        if plainly:
            patch.setattr(folder, "whole", lambda _path: None)
        try:
            return load(path).records
        except UsageError as error:
            return str(error)


def test_what_is_as_it_should_be_is_not_read_twice(path, monkeypatch):
    monkeypatch.setattr(folder, "lines", None)
    assert load(path).records == [a_record(0)]


@given(st.text('a"', max_size=60).map(str.encode), st.integers(1, 12))
def test_a_long_text_is_one_between_any_two_quotes(raw, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading.valid, "TEXT_LENGTH", most)
        assert loading._has_long_text(raw) == (len(raw) > most and max(map(len, raw.split(b'"'))) > most)


@given(st.lists(st.sampled_from([b"},\n", b"}", b"a\n", b"\r\n", b"\r", b"b" * 5000, b'"x": 1,\n']), max_size=12).map(b"".join))
def test_marks_are_those_of_the_lines_whatever_blocks_they_are_read_in(content):
    plain = "".join(f" {zlib.crc32(line):08x}" for line in content.splitlines(keepends=True))
    assert sums._marks(content) == plain


def test_machines_come_by_the_numbers_in_their_names(tmp_path):
    """Folders keep them by a hash: a page would begin with *n7 … n3*."""
    path = fill(tmp_path, finished=False)
    names = {"m1": "n10", "a": "n9", "z": "n1", "c": "login"}
    for machine_id, host in names.items():
        (path / "machines" / f"{machine_id}.json").write_bytes(msgspec.json.encode(a_machine(machine_id=machine_id, host=host)))
    assert [machine.host for machine in load(path).machines.values()] == ["login", "n1", "n9", "n10"]

"""Lines that run cases again: pasted into a shell, they say what the run was given."""

from __future__ import annotations

import re
import shlex
import subprocess

import msgspec
import pytest
from hypothesis import given, strategies as st

import run_suite
from clustergauge.globs import matches
from reports.again import again, glob_of, resuming
from tests.made_up import COPY, MATMUL, RUN, loaded, planned, record
from tests.shown import shown


def pasted(text: str) -> list[str]:
    """The words a shell makes of the first rerun line."""
    line = text[text.index("again: ") + 7 :].replace("\\\n", "")
    line = re.split(r"\n", line)[0]
    out = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return out.decode().split("\0")[:-1]


NASTY = 'it\'s $(reboot); `x` "y" \\ & {ranks}'


@pytest.mark.parametrize("width", [80, 120])
def test_a_pasted_line_gives_the_command_line_what_the_run_was_given(width):
    command = ("--sui", "full", "--set", "size=1GiB", "--set=op=copy,add", "--probes", "my.probes", "--launcher", NASTY, "-oout")
    command += ("-kmemory*", "--device", "cpu", "--ranks", "2", "--launches", "5", "--format=json", "--dry-run")
    command += ("--target=-odd", "--target", "b", "--cross-check")
    words = pasted(shown(loaded(record("memory", COPY, "error", "died"), command=command), width=width))
    assert words[:2] == ["run_suite.py", "run"]
    options = run_suite.make_parser().parse_args(words[1:])
    assert options.globs == ["memory/backend=torch/op=copy/size=256MiB"]
    assert (options.suite, options.values, options.probes) == ("full", ["size=1GiB", "op=copy,add"], ["my.probes"])
    assert (options.launcher, options.output, options.device, options.ranks) == (NASTY, "out", "cpu", 2)
    assert (options.targets, options.launches, options.format, options.dry_run) == (["-odd", "b"], 1, "text", False)
    assert options.cross_check
    assert shlex.split(shlex.join(words)) == words


def test_what_is_the_default_anyway_is_not_said_again():
    run = loaded(command=("run", "--suite", "quick", "--device", "auto", "-o", "results")).run
    assert again(run, "a/b=1", broken=True) == ["run_suite.py run", "-k a/b=1"]


def test_the_command_that_goes_on_says_what_a_run_folder_may_not_decide():
    assert resuming(loaded(command=("run", "--suite", "full", "-k", "x", "--target", "a")).run) == (
        f"run_suite.py run --resume {RUN} --target a"
    )
    command = ("--target", "a b", "--target", "c", "--hosts", "n[1-4]", "--launcher", NASTY, "-o", "/out", "--ranks", "2")
    words = shlex.split(resuming(loaded(command=command).run))
    options = run_suite.make_parser().parse_args(words[1:])
    assert (options.resume, options.targets, options.output) == (RUN, ["a b", "c"], "/out")
    assert (options.hosts, options.launcher, options.ranks) == ("n[1-4]", NASTY, None)
    command = ("run", "--target", "a", "-o", "/out")
    missing = [planned(record("memory", COPY))]
    assert f"run_suite.py run --resume {RUN} --target a -o /out goes on" in " ".join(
        shown(loaded(command=command, missing=missing, interrupted=True)).split()
    )


def test_every_flag_that_the_run_knows_is_known_to_the_rerun_line():
    from reports.again import _KEPT, _OTHER, _SWITCHES

    known = {"-k", *(f"--{name}" for name in (*_KEPT, *_OTHER, *_SWITCHES) if name != "k")}
    (verbs,) = [a for a in run_suite.make_parser()._actions if a.dest == "verb"]
    flags = {flag for action in verbs.choices["run"]._actions for flag in action.option_strings}
    assert flags - {"-h", "--help", "-o"} == known


def test_a_run_of_failed_cases_is_run_again_as_such():
    died, slow = record("memory", COPY, "error", "died"), record("matmul", MATMUL)
    run = loaded(died, slow, command=("run", "--rerun-failed", "20260101", "-o", "out", "--suite", "full")).run
    assert again(run, died.case, broken=True) == ["run_suite.py run", f"--rerun-failed {RUN}", "-o out"]
    assert again(run, slow.case, broken=False) == ["run_suite.py run", "--rerun-failed 20260101", "-o out"]
    latest = loaded(slow, command=("--rerun-failed", "latest")).run
    assert again(latest, slow.case, broken=False) == []


def test_a_command_that_cannot_be_understood_still_gives_a_line():
    assert again(loaded(command=("--suite",)).run, "a/b=1", broken=True) == ["run_suite.py run", "-k a/b=1"]
    assert again(msgspec.structs.replace(loaded().run, command=[]), "a", broken=True) == ["run_suite.py run", "-k a"]


@given(st.lists(st.text(st.sampled_from("ab=/*?[]-!1"), max_size=8).map(lambda t: t + "p"), min_size=1, max_size=6, unique=True))
def test_a_glob_chooses_its_case_and_no_other(cases):
    glob = glob_of(cases[0], cases)
    assert [case for case in cases if matches(glob, case)] == cases[:1]
    assert not glob.startswith("-")

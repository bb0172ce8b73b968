"""The files that are ready to copy say nothing that our own command lines would refuse."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import run_suite

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def arguments(tmp_path, **environment):
    """What the batch script gives to run_suite.py; the interpreter of its checkout is one that tells."""
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    known = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path)} | environment
    done = subprocess.run(["bash", DOCS / "slurm.sbatch"], env=known, capture_output=True, text=True, check=True)
    script, *words = done.stdout.splitlines()
    assert script == "run_suite.py"
    return run_suite.make_parser().parse_args(words)


def test_the_batch_script_measures_the_nodes_of_its_allocation(tmp_path):
    nodes = {"SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "gpu[01-04]"}
    asked = arguments(tmp_path, **nodes, ACCEPT="a b.toml", TARGET="/scratch")
    assert (asked.verb, asked.hosts, asked.remote) == ("run", "gpu[01-04]", "srun")
    assert (asked.accept, asked.targets, asked.launches, asked.suite) == ("a b.toml", ["/scratch"], 3, "quick")


def test_of_a_single_node_no_others_are_asked(tmp_path):
    asked = arguments(tmp_path, SLURM_JOB_NUM_NODES="1", SLURM_JOB_NODELIST="gpu01", SUITE="mine.toml")
    assert (asked.hosts, asked.remote, asked.accept, asked.suite) == ("", "", None, "mine.toml")


def test_before_the_time_is_over_the_run_is_asked_to_end_and_not_the_shell_before_it(tmp_path):
    assert "\n#SBATCH --signal=B:TERM@" in (DOCS / "slurm.sbatch").read_text()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport os\nprint(os.getpid())\n")
    python.chmod(0o755)
    known = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path)}
    script = subprocess.Popen(["bash", DOCS / "slurm.sbatch"], env=known, stdout=subprocess.PIPE, text=True)
    assert int(script.communicate(timeout=60)[0]) == script.pid


def test_outside_an_allocation_the_batch_script_says_what_to_do(tmp_path):
    done = subprocess.run(["bash", DOCS / "slurm.sbatch"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode
    assert "run me with sbatch" in done.stderr


@pytest.mark.parametrize("name", ["github-actions.yml", "ci.md"])
def test_flags_of_the_lane_that_the_documents_name_exist(name):
    named = set(re.findall(r"--(?:bench|benchmark|gauge)-[a-z-]+", (DOCS / name).read_text()))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    installed = any(e.value == "clustergauge.pytest_plugin" for e in entry_points(group="pytest11"))  # it registers itself then
    plugin = [] if installed else ["-p", "clustergauge.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", *plugin, "tests/bench", "--help"]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert named
    assert {flag for flag in named if not re.search(rf"{flag}\b(?!-)", told)} == set()


def steps():
    """The commands of the workflow, as the runner's shell gets them."""
    text = (DOCS / "github-actions.yml").read_text()
    single = re.findall(r"^ +- run: (?!\|)(.+)$", text, re.MULTILINE)
    blocks = [m[2] for m in re.finditer(r"^( +)run: \|\n((?:\1  .*\n)+)", text, re.MULTILINE)]
    return [*single, *map(textwrap.dedent, blocks)]


def test_the_workflow_calls_run_suite_as_it_wants_to_be_called():
    (words,) = [
        step.partition("run_suite.py ")[2].split() for step in steps() if step.startswith(".venv/bin/python run_suite.py")
    ]
    assert run_suite.main(["run", *words[:-2], "--dry-run", "--device", "cpu", "-k", "launch/*"]) == 0


@pytest.mark.parametrize(("code", "cpu", "gpu"), [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 0, 4), (130, 130, 130)])
def test_the_workflow_holds_a_pull_request_against_its_base(tmp_path, code, cpu, gpu):
    gates = [step for step in steps() if "--against" in step]
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "**verdict**"\nfor word; do echo "$word" >> words; done\nexit {code}\n')
    python.chmod(0o755)
    known = {"PATH": os.environ["PATH"], "BASE": "origin/a;b", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    for step, expected, device in zip(gates, (cpu, gpu), ("auto", "cuda"), strict=True):
        done = subprocess.run(["bash", "-e", "-c", step], env=known, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        assert ("::warning" in done.stdout) == (expected != code)
        script, *words = (tmp_path / "words").read_text().splitlines()
        asked = run_suite.make_parser().parse_args(words)
        assert (script, asked.verb, asked.against, asked.format) == ("run_suite.py", "compare", "origin/a;b", "md")
        assert (asked.device, asked.suite, asked.output) == (device, "ci", "results")
        (tmp_path / "words").unlink()
    assert (tmp_path / "summary").read_text() == "**verdict**\n" * 2
    text = (DOCS / "github-actions.yml").read_text()
    assert text.count("fetch-depth: 0") == text.count("actions/checkout@") == text.count("origin/${{ github.base_ref }}") == 2
    assert not any("${{" in step for step in steps())  # what others name never becomes part of a script


def test_flags_that_the_document_names_for_the_gate_exist():
    lines = [
        line.partition("#")[0] for line in (DOCS / "ci.md").read_text().splitlines() if line.startswith("run_suite.py compare")
    ]
    assert len(lines) >= 3
    for line in lines:
        assert run_suite.make_parser().parse_args(shlex.split(line)[1:]).against

"""Inside a Slurm allocation: agents and MPI ranks by srun.  ``tests/faults/srun`` stands in for it; no Slurm is here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from clustergauge import code, hosts
from clustergauge.errors import UsageError
from clustergauge.remote import is_srun
from tests import nodes

SRUN = nodes.FAULTS / "srun"
SUITE = """
title = "nodes"
budget_s = 0.3
timeout_s = 20
[[cases]]
probe = "misbehave"
how = "well"
world = ["serial", "torch", "mpi"]
phase = "run"
"""


def test_agents_and_ranks_are_started_by_srun_on_the_nodes_of_the_allocation(tmp_path):
    """One step for all agents, their key by its broadcast standard input; a node that does not answer is named."""
    (tmp_path / "nodes.toml").write_text(SUITE)
    told = {"SLURM_JOB_NODELIST": "sl[01-02]", "REACH": str(nodes.FAULTS / "reach.sh")}
    told["MPIEXEC"] = str(Path(sysconfig.get_path("scripts")) / "mpiexec")
    command = [sys.executable, str(code.ROOT / "run_suite.py"), "run", "--probes", "tests.faults.misbehaving", "--ranks", "1"]
    command += ["--suite", str(tmp_path / "nodes.toml"), "--launcher", str(SRUN), "--address", nodes.HERE, "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=code.ROOT, capture_output=True, text=True, timeout=110, env=os.environ | told)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [path for path in tmp_path.iterdir() if (path / "run.json").exists()]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    where = {(r["params"]["world"], r["device"]): [p["host"] for p in r["placement"]] for r in records if r["status"] == "ok"}
    assert where["torch", "cpu:nodes"] == where["mpi", "cpu:nodes"] == ["sl01", "sl02"]
    local = {r["placement"][0]["host"] for r in records if r["params"]["world"] == "serial"}
    assert local == {"sl01", "sl02"}
    assert json.loads((folder / "run.json").read_text())["settings"]["hosts"] == "sl[01-02]"


@pytest.mark.slow
def test_a_node_of_the_allocation_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "sl01,down1")
    fleet = nodes.fleet(("sl01", "down1"), str(SRUN), start_s=20)
    fleet.close()
    assert list(fleet.machines) == ["sl01"]
    assert "did not call within 20 s" in fleet.left_out["down1"]
    assert "node is not responding" in fleet.left_out["down1"]
    assert nodes.workers_left(fleet.desk.token) == []


@pytest.mark.parametrize(
    ("command", "srun"),
    [("srun", True), ("/opt/slurm/bin/srun --mpi=pmix", True), ("ssh {host}", False), ("'", False), ("", False)],
)
def test_srun_is_known_by_its_name(command, srun):
    assert is_srun(command) is srun


def test_only_srun_makes_the_allocation_the_hosts():
    allocation = {"SLURM_JOB_NODELIST": "n[1-3]"}
    assert hosts.wanted("", "", True, allocation) == ["n1", "n2", "n3"]
    assert hosts.wanted("", "", False, allocation) == []
    assert hosts.wanted("n2", "", True, allocation) == ["n2"]
    assert hosts.wanted("", "", True, {}) == []
    with pytest.raises(UsageError, match="give one of them"):
        hosts.wanted("a", "b", False, {})

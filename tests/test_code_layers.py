"""Who may import whom: judgement and reports need no device library, the library needs no probe."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from clustergauge import code

ROOT = Path(__file__).parent.parent
DEVICE_LIBRARIES = {"torch", "mpi4py", "triton", "pynvml", "cupy"}
JUDGEMENT = [f"clustergauge.{name}" for name in ("model", "stats", "metrics", "accept", "warnings", "ceilings")]
REPORTS = sorted(f"reports.{file.stem}" for file in (ROOT / "reports").glob("*.py") if file.stem != "__init__")
LIBRARY = sorted(f"clustergauge.{file.stem}" for file in (ROOT / "clustergauge").glob("*.py") if file.stem != "__init__")
PROBE_FOLDERS = {"kernels", "collectives", "storage_io"}

IMPORTER = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    loaded[name] = sorted({module.partition(".")[0] for module in set(sys.modules) - before})
print(json.dumps(loaded))
"""


def loaded_by(modules):
    """The top-level packages that each of the modules brings, in a fresh interpreter, one after the other."""
    said = subprocess.run(
        [sys.executable, "-c", IMPORTER, *modules], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def offences(modules, forbidden):
    return {name: bad for name, packages in loaded_by(modules).items() if (bad := sorted(forbidden & set(packages)))}


def imports_in(tree):
    """The top-level packages that a module names in its imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0] if node.level == 0 else "."


def test_this_test_sees_what_is_imported():
    assert offences(["collectives.exact", "clustergauge.worker"], {"collectives", "faulthandler"}) == {
        "collectives.exact": ["collectives"],
        "clustergauge.worker": ["faulthandler"],
    }
    assert list(imports_in(ast.parse("def f():\n import a.b\n from c.d import e\n from . import g"))) == ["a", "c", "."]


def test_judgement_loads_no_device_library():
    assert offences(JUDGEMENT, DEVICE_LIBRARIES | {"scipy", "rich"} | PROBE_FOLDERS | {"reports"}) == {}


def test_reports_load_no_device_library_and_no_probe():
    assert len(REPORTS) > 3
    assert offences(REPORTS, DEVICE_LIBRARIES | PROBE_FOLDERS) == {}


def test_the_library_loads_no_probe_and_draws_nothing():
    heavy = {"torch", "scipy", "triton", "mpi4py", "cupy"}  # importing any of it must leave `list` fast
    assert offences(LIBRARY, heavy | PROBE_FOLDERS | {"reports", "rich"}) == {}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("clustergauge", PROBE_FOLDERS | {"reports", "rich", "tests", "run_suite", "verbs", "pickle", "."}),
        ("reports", PROBE_FOLDERS | DEVICE_LIBRARIES | {"tests", "run_suite", "verbs", "pickle", "."}),
        *(
            (folder, (PROBE_FOLDERS - {folder}) | {"reports", "tests", "run_suite", "verbs", "pickle", "."})
            for folder in sorted(PROBE_FOLDERS)
        ),
    ],
)
def test_no_module_names_what_its_room_must_not_know(folder, forbidden):
    """Inside functions too, where importing alone would not show it."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(f.relative_to(ROOT)): sorted(forbidden & set(imports_in(ast.parse(f.read_text())))) for f in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("name", ["a.py", "a.toml", "a.cu", "a.ll"])
def test_the_digest_of_the_code_knows_every_kind_of_source(tmp_path, monkeypatch, name):
    monkeypatch.setattr(code, "ROOT", tmp_path)
    (tmp_path / "kernels").mkdir()
    digests = {code.digest.__wrapped__()}
    for content in ("", "1", "2"):
        (tmp_path / "kernels" / name).write_text(content)
        digests.add(code.digest.__wrapped__())
    assert len(digests) == 4

"""Another revision beside this tree: real git, and sides that are small scripts."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clustergauge import revision, side
from clustergauge.errors import UsageError
from clustergauge.loading import LoadedRun
from tests import made

SCRIPT = """
import sys
suite = open(sys.argv[sys.argv.index("--suite") + 1]).read() if "--suite" in sys.argv else ""
{body}
"""


def git(where: Path, *words: str) -> str:
    name = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", *name, "-C", where, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """Two commits, the older one tagged ``old``."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", ".")
    for word in ("old", "new"):
        (root / "run_suite.py").write_text(f"print({word!r})\n")
        git(root, "add", "-A")
        git(root, "commit", "-qm", word)
        git(root, "tag", word)
    return root


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where worktrees are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(revision.tempfile, "tempdir", str(folder))
    return folder


def worktrees(root: Path) -> int:
    return git(root, "worktree", "list").count("\n") + 1


def test_the_other_revision_is_there_and_gone_afterwards(repository, temporary):
    (repository / "run_suite.py").write_text("print('changed')\n")
    (repository / "added").touch()
    here = revision.at_hand(repository)
    assert here.name == f"this tree ({git(repository, 'rev-parse', 'HEAD')[:9]} and 2 uncommitted files)"
    with revision.checked_out(here, "old") as there:
        assert (there.root / "run_suite.py").read_text() == "print('old')\n"
        assert there.name == f"old ({git(repository, 'rev-parse', 'old')[:9]})"
        assert worktrees(repository) == 2
    assert worktrees(repository) == 1
    assert list(temporary.iterdir()) == []
    assert (repository / "run_suite.py").read_text() == "print('changed')\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_is_gone_however_it_ends(repository, temporary, error):
    def end() -> None:
        with revision.checked_out(revision.at_hand(repository), "old") as there:
            (there.root / "left").touch()
            raise error

    with pytest.raises(error):
        end()
    assert worktrees(repository) == 1
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_taken_away_and_what_another_uses_is_not(repository, temporary):
    here = revision.at_hand(repository)
    dead = temporary / f"{revision.PREFIX}dead"
    gone = temporary / f"{revision.PREFIX}gone"
    for home in (dead, gone):
        git(repository, "worktree", "add", "--detach", str(home / "tree"), "old")
    subprocess.run(["rm", "-r", gone], check=True)
    with revision.checked_out(here, "old") as used:
        assert not dead.exists()
        assert worktrees(repository) == 2
        with revision.checked_out(here, "new"):
            assert used.root.exists()
            assert worktrees(repository) == 3


def test_a_folder_inside_a_larger_repository_is_found_in_both(tmp_path, temporary):
    root = tmp_path / "larger"
    inner = root / "tools/gauge"
    inner.mkdir(parents=True)
    (inner / "run_suite.py").touch()
    git(root, "init", "-q", ".")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    here = revision.at_hand(inner)
    (root / "untracked").mkdir()
    with revision.checked_out(here, "HEAD") as there:
        assert there.root == there.top / "tools/gauge"
        assert here.place_of(inner, there) == there.root
        assert here.place_of(root / "untracked", there) == root / "untracked"
        assert here.place_of(tmp_path, there) == tmp_path


def test_no_hook_of_the_repository_runs(repository, temporary, tmp_path):
    hook = repository / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    with revision.checked_out(revision.at_hand(repository), "old"):
        pass
    assert not (tmp_path / "hooked").exists()


def test_inside_a_hook_the_repository_is_still_the_one_of_the_tree(repository, temporary, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    with revision.checked_out(revision.at_hand(repository), "old") as there:
        assert there.top.parent.parent == temporary


@pytest.mark.parametrize("word", ["nowhere", "", "--all", "-h", "a\x1b[31m", "HEAD~7"])
def test_an_unknown_revision_is_the_users_mistake(repository, temporary, word):
    with (
        pytest.raises(UsageError, match="no such revision here") as caught,
        revision.checked_out(revision.at_hand(repository), word),
    ):
        pass
    assert str(caught.value).isprintable()
    assert list(temporary.iterdir()) == []


def test_in_a_shallow_clone_the_remedy_is_named(repository, temporary, tmp_path):
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "shallow")
    with (
        pytest.raises(UsageError, match="fetch-depth: 0"),
        revision.checked_out(revision.at_hand(tmp_path / "shallow"), "HEAD~1"),
    ):
        pass


def test_a_revision_with_submodules_is_refused(repository, temporary):
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{git(repository, 'rev-parse', 'old')},third party")
    git(repository, "commit", "-qm", "submodule")
    with (
        pytest.raises(UsageError, match=r"submodules \(third party\)"),
        revision.checked_out(revision.at_hand(repository), "HEAD"),
    ):
        pass


def test_a_revision_without_the_suite_is_refused(repository, temporary):
    git(repository, "rm", "-q", "run_suite.py")
    git(repository, "commit", "-qm", "none")
    with pytest.raises(UsageError, match="has no run_suite"), revision.checked_out(revision.at_hand(repository), "HEAD"):
        pass
    assert worktrees(repository) == 1


def test_what_is_no_checkout_is_said(tmp_path):
    with pytest.raises(UsageError, match="needs a git checkout of the suite"):
        revision.at_hand(tmp_path)


# --------------------------------------------------------------------------------------------------------------------------
# sides


def made_side(root: Path, body: str, letter: side.Letter = "A") -> side.Side:
    root.mkdir(exist_ok=True)
    (root / "run_suite.py").write_text(SCRIPT.format(body=body))
    tree = revision.Tree(root, ".", "0" * 40, "old (000000000)")
    return side.Side(letter, tree, root, (), root / "runs")


LISTED = [side.Listed(case=f"p/x={n}", probe="p", params={"x": n}) for n in ("one", "newer", "two")]
KNOWS_ALL_BUT = """
import json, tomllib
found = []
for number, table in enumerate(tomllib.loads(suite)["cases"], 1):
    if table["x"] == "newer":
        print(f"run_suite.py: cases[{number}]: x=newer: probe 'p' knows one, two", file=sys.stderr)
        sys.exit(2)
    found.append({"case": f"p/x={table['x']}", "probe": "p", "params": {"x": table["x"]}, "device": "", "later": 1})
print(json.dumps(found))
"""


def test_what_the_other_side_does_not_know_is_left_out(tmp_path):
    assert [c.case for c in made_side(tmp_path / "a", KNOWS_ALL_BUT).able(LISTED)] == ["p/x=one", "p/x=two"]


def test_new_and_gone_cases_are_listed_and_not_measured(tmp_path):
    listing = "import json\nprint(json.dumps([{{'case': f'p/x={{n}}', 'probe': 'p', 'params': {{'x': n}}}} for n in {}]))"
    (tmp_path / "s.toml").touch()
    b = made_side(tmp_path / "b", listing.format(["one", "newer", "two"]), "B")
    before = f"if 'cases' in suite:\n    {KNOWS_ALL_BUT.replace(chr(10), chr(10) + '    ')}\nelse:\n    "
    a = made_side(tmp_path / "a", before + listing.format(["one", "older"]).replace("\n", "\n    "))
    bench = side.bench(a, b, tmp_path / "s.toml", [], tmp_path)
    assert (list(bench.cases), bench.new, bench.gone) == (["p/x=one", "p/x=two"], ["p/x=newer"], ["p/x=older"])


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("print('run_suite.py: --set x: no probe has this axis', file=sys.stderr); sys.exit(2)", UsageError, "no probe has"),
        ("raise RuntimeError('planted')", side.Unable, "exited with 1: RuntimeError: planted"),
        ("import os; os.kill(os.getpid(), 9)", side.Unable, "killed by SIGKILL: it said nothing"),
        ("print('[{]')", side.Unable, "what it lists cannot be read"),
        ("print('[{\"probe\": 3}]')", side.Unable, "what it lists cannot be read"),
        ("print('\\x1b[31m', file=sys.stderr); sys.exit(9)", side.Unable, "exited with 9"),
    ],
)
def test_a_side_that_cannot_say_what_it_has_is_named(tmp_path, body, error, said):
    with pytest.raises(error) as caught:
        made_side(tmp_path / "a", body).cases("/dev/null")
    assert str(caught.value).startswith("A = old (000000000): ")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("body", ["", "sys.exit(2)", "sys.exit(3)", "sys.exit(4)", "sys.exit(130)", "1 / 0"])
def test_a_launch_that_leaves_no_run_is_no_launch(tmp_path, body):
    one = made_side(tmp_path / "a", body)
    with pytest.raises(side.Unable, match="A = old"), one.launched(Path("/dev/null")) as call:
        one.measured(call)


def test_a_launch_that_is_left_before_its_end_is_ended(tmp_path):
    with made_side(tmp_path / "a", "import time; time.sleep(600)").launched(Path("/dev/null")) as call:
        assert call.process.poll() is None
    assert call.process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("first", side.LETTERS)
def test_of_two_that_measure_by_turns_one_that_dies_is_named_at_once_and_the_other_is_ended(tmp_path, first):
    lives = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    dies = "import os, time\nwhile not os.path.exists('../a/pid'): time.sleep(0.01)\nos.kill(os.getpid(), 9)"
    a, b = made_side(tmp_path / "a", lives, "A"), made_side(tmp_path / "b", dies, "B")
    bench = side.Bench({"A": a, "B": b}, {case.case: case for case in LISTED}, [], [], tmp_path, in_turns=True)
    with pytest.raises(side.Unable, match=r"B = old \(0+\): its run_suite.py killed by SIGKILL"):
        bench.launch(first, ["p/x=two"])
    assert not Path(f"/proc/{(tmp_path / 'a/pid').read_text()}").exists()


def test_a_tree_that_changes_while_it_is_measured_is_refused(tmp_path):
    class Changing:
        def __init__(self, letter, *codes):
            self.letter, self.codes = letter, iter(codes)

        @contextlib.contextmanager
        def launched(self, suite, *words):
            yield suite

        def measured(self, suite):
            return LoadedRun(made.run([], code=next(self.codes)), {}, [], suite, [])

        def __str__(self):
            return f"{self.letter} = a tree"

    sides = {"A": Changing("A", "old", "old", "old"), "B": Changing("B", "one", "one", "two")}
    bench = side.Bench(sides, {case.case: case for case in LISTED}, [], [], tmp_path)
    for _ in range(2):
        bench.launch("B", ["p/x=two"])
    assert 'x" = "two"' in (tmp_path / "suite.toml").read_text()
    with pytest.raises(side.Unable, match="B = a tree: its code changed while it was measured"):
        bench.launch("B", ["p/x=two"])


TURNS = """
import pathlib
if sys.argv[1] == 'list':
    print('[{"case": "p/x=one", "probe": "p", "params": {"x": "one"}}]')
elif sys.argv[2] == '--help':
    print(HELP)
else:
    with open('TOLD', 'a') as told:
        print(sys.argv[sys.argv.index('--turns') + 1] if '--turns' in sys.argv else 'alone', file=told)
"""


@pytest.mark.parametrize("helps", [("--turns DIR", "--turns DIR"), ("", "--turns DIR"), ("--turns DIR", "")])
def test_sides_measure_by_turns_if_both_can(tmp_path, helps, monkeypatch):
    (tmp_path / "s.toml").touch()
    told = tmp_path / "told"
    bodies = [TURNS.replace("HELP", repr(text)).replace("TOLD", str(told)) for text in helps]
    a, b = (made_side(tmp_path / letter, body, letter) for letter, body in zip("AB", bodies, strict=True))
    bench = side.bench(a, b, tmp_path / "s.toml", [], tmp_path)
    assert bench.in_turns == all(helps)
    monkeypatch.setattr(
        side.Side, "measured", lambda self, call: LoadedRun(made.run([], code=str(call.wait()[0])), {}, [], "", [])
    )
    assert list(bench.launch("B", ["p/x=one"])) == ["B", "A"]
    one, other = told.read_text().split()
    assert one == other
    assert ("turns-" in one) == all(helps)


def test_sides_run_by_this_interpreter_from_their_own_folder(tmp_path):
    one = made_side(tmp_path / "a", "import os\nprint(f'[]')\nopen('told', 'w').write(os.getcwd() + ' ' + sys.executable)")
    assert one.cases("/dev/null") == []
    assert (tmp_path / "a/told").read_text() == f"{tmp_path / 'a'} {sys.executable}"

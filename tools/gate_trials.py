"""What the gate of pull requests is worth on this machine: comparisons of equal trees, and as many with a planted slow-down.

    python -m tools.gate_trials 20                        # on an idle machine: 20 of each kind, some three minutes a trial
    python -m tools.gate_trials 1 -k latency --launches 4
    python -m tools.gate_trials 20 --effect 8 --threshold 4%

Clones the commit at hand (what is not committed has no part in it) into a temporary folder, and there compares the tree with
its own HEAD: as it is, and with one case made longer, each case of the suite in its turn.  Every call of that case is followed
by idle turns that last a share of the call itself, so the truth is known whatever the machine; on a GPU such turns would hide
behind the queue, so this is for a processor.  Further flags go to ``compare``.  Prints a line for each trial (±: the median
half-width of its intervals), then the counts.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
INTERRUPTED = 130
"""What a comparison ends with that was interrupted."""
CHOOSING = ("-k", "--suite", "--set", "--device", "--ranks", "--probes", "--target")
"""Flags of ``compare`` that ``list`` has to know too."""
PLANT = """

def _planted() -> None:
    import dataclasses
    import functools
    import time

    found = next(value for value in globals().values() if getattr(value, "name", "") == {probe!r} and hasattr(value, "axes"))

    def longer(run):
        def call():
            start = time.perf_counter()
            result = run()
            now = time.perf_counter()
            until = now + {effect!r} * (now - start)
            while time.perf_counter() < until:
                pass
            return result

        return call

    @functools.wraps(found.function)
    def prepare(ctx, **params):
        work = found.function(ctx, **params)
        if params == {params!r}:
            work.run = longer(work.run) if callable(work.run) else [longer(run) for run in work.run]
        return work

    name = next(name for name, value in globals().items() if value is found)
    globals()[name] = dataclasses.replace(found, function=prepare)


_planted()
"""
"""Goes to the end of a probe's module."""


@dataclass(frozen=True)
class Trial:
    """``planted``: the case, empty where the trees are equal.  ``slower``: cases that were called so, with their shifts.

    ``width``: the median half-width of the intervals.
    """

    planted: str
    code: int
    seconds: float
    slower: dict[str, float] = field(default_factory=dict[str, float])
    words: dict[str, int] = field(default_factory=dict[str, int])
    width: float = math.nan

    @property
    def outcome(self) -> str:
        """``green``, ``undecided`` or ``FALSE RED`` of equal trees; ``hit``, ``WRONG NAME``, ``undecided`` or ``MISSED``."""
        if self.code not in (0, 1, 4):
            return f"FAILED ({self.code})"
        if set(self.slower) - {self.planted}:
            return "WRONG NAME" if self.planted else "FALSE RED"
        if self.planted:
            return "hit" if self.slower else "undecided" if self.code == 4 else "MISSED"
        return "green" if self.code == 0 else "undecided"


def main(words: Sequence[str] | None = None) -> int:
    """Run the trials; 1 if one was red without a cause, named a wrong case or failed, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="gate_trials", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trials", type=int, help="of each kind")
    parser.add_argument("--effect", type=float, default=5.0, metavar="PERCENT", help="planted (default 5)")
    options, flags = parser.parse_known_args(words)
    say(f"{'trial':<7}{'planted':<12}{'outcome':<12}{'time':>7}{'±':>9}  words; what was called slower")
    done: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="gate-trials-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        cases = listed(clone, flags)
        try:
            for number in range(options.trials):
                for case in (None, cases[number % len(cases)]):
                    trial = carry_out(clone, case, options.effect / 100, flags)
                    done.append(trial)
                    say(line(number, trial, options.effect))
        except KeyboardInterrupt:
            say("\n" + "\n".join(["interrupted", *summary(done)]))
            return INTERRUPTED
    say("\n" + "\n".join(summary(done)))
    return int(any(trial.outcome.startswith(("FALSE", "WRONG", "FAILED")) for trial in done))


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def ended(code: int) -> None:
    """Raise ``KeyboardInterrupt`` if that is what ended a comparison: it is the end of all."""
    if code == INTERRUPTED:
        raise KeyboardInterrupt


def listed(clone: Path, flags: Sequence[str]) -> list[dict[str, object]]:
    """The cases that a comparison with these flags would measure."""
    command = [sys.executable, "run_suite.py", "list", "--suite", "ci", *choosing(flags), "--format", "json"]
    done = subprocess.run(command, cwd=clone, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:  # it has said why
        sys.exit(done.returncode)
    return [case for case in json.loads(done.stdout) if not case["skip"]] or sys.exit("no case of these can run here")


def choosing(flags: Sequence[str]) -> list[str]:
    """Of flags for ``compare`` those that choose cases, in whichever way they were written."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in CHOOSING:
        parser.add_argument(flag, dest=flag, action="append", default=[])
    known = vars(parser.parse_known_args(flags)[0])
    return [word for flag in CHOOSING for value in known[flag] for word in (flag, value)]


def carry_out(clone: Path, case: dict[str, object] | None, effect: float, flags: Sequence[str]) -> Trial:
    """One comparison of the clone with its HEAD, after planting in ``case``."""
    subprocess.run(["git", "-C", str(clone), "checkout", "--quiet", "."], check=True)
    if case:
        module = clone / (str(case["module"]).replace(".", "/") + ".py")
        plant = PLANT.format(probe=case["probe"], params=case["params"], effect=effect)
        module.write_text(module.read_text(encoding="utf-8") + plant, encoding="utf-8")
    began = time.monotonic()
    command = [sys.executable, "run_suite.py", "compare", "--against", "HEAD", "--format", "json", *flags]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    planted, seconds = str(case["case"]) if case else "", time.monotonic() - began
    ended(done.returncode)
    if done.returncode not in (0, 1, 4):
        say(done.stderr)
        return Trial(planted, done.returncode, seconds)
    pairs = json.loads(done.stdout)["pairs"]
    shifts = {p["case"]: p["shift"] for p in pairs if p["shift"]}
    slower = {p["case"]: p["shift"]["shift"] for p in pairs if p["word"] == "changed" and p["shift"]["shift"] > 0}
    width = median((s["high"] - s["low"]) / 2 for s in shifts.values()) if shifts else math.nan
    return Trial(planted, done.returncode, seconds, slower, Counter(p["word"] for p in pairs), width)


def line(number: int, trial: Trial, effect: float) -> str:
    """One trial in words."""
    planted = f"{effect:g} %" if trial.planted else "nothing"
    words = ", ".join(f"{count} {word}" for word, count in sorted(trial.words.items()))
    slower = "".join(f"; {case} {shift:+.1%}" for case, shift in trial.slower.items())
    missed = f"; planted in {trial.planted}" if trial.planted and trial.planted not in trial.slower else ""
    figures = f"{trial.outcome:<12}{trial.seconds:>5.0f} s{100 * trial.width:>7.1f} %"
    return f"{number + 1:<7}{planted:<12}{figures}  {words}{slower}{missed}"


def summary(trials: Sequence[Trial]) -> list[str]:
    """What came of equal trees, and of planted ones."""
    lines: list[str] = []
    for name, some in (("equal", [t for t in trials if not t.planted]), ("planted", [t for t in trials if t.planted])):
        counts = Counter(trial.outcome for trial in some)
        spent = sum(trial.seconds for trial in some) / max(1, len(some))
        lines.append(f"{name}: {len(some)} trials: {', '.join(f'{n} {o}' for o, n in counts.most_common())}; {spent:.0f} s each")
    return lines


if __name__ == "__main__":
    sys.exit(main())

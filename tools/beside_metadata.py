"""Operations on names beside the same system calls in a loop in C, in turn on one file system.

    .venv/bin/python -m tools.beside_metadata TARGET [PAIRS [SECONDS [GLOB]]]

The ratio of our rate to the loop's (median over PAIRS, the smallest and the largest), then that of the loop to itself a moment
later.  Both sides stand before a folder of as many empty files, and work on as many of them in an order of chance; what they did
is undone untimed.  Needs cc; files are made in TARGET and removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from clustergauge.probe import Context, Peer, Work
from storage_io import metadata
from tools.beside import Make, main

FILES = 10_000
LOOP = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int once(char op, const char *path) {
    struct stat found;
    if (op == 'u') return unlink(path);
    if (op == 's') return stat(path, &found);
    int file = op == 'c' ? open(path, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600)
                         : open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    return file < 0 ? -1 : close(file);
}

int main(int count, char **words) {
    (void)count;
    size_t many = strtoul(words[2], NULL, 10), length = 0;
    char **paths = malloc(many * sizeof *paths);
    for (size_t n = 0; n < many; n++) {
        paths[n] = NULL;
        ssize_t got = getline(&paths[n], &length, stdin);
        if (got < 1) return 2;
        paths[n][got - 1] = 0;
        length = 0;
    }
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (size_t n = 0; n < many; n++)
        if (once(words[1][0], paths[n])) { perror(paths[n]); return 1; }
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%.9f\n", to.tv_sec - from.tv_sec + 1e-9 * (to.tv_nsec - from.tv_nsec));
}
"""


class Loop:
    """The loop, and its own folder of `FILES` empty files."""

    def __init__(self, folder: Path, op: str, count: int) -> None:
        self._op, self._count = op, count
        self._program = folder / "loop"
        source = folder / "loop.c"
        source.write_text(LOOP)
        subprocess.run(["cc", "-O2", "-Wall", "-o", self._program, source], check=True)
        self._paths = [folder / "names" / f"data-{n}" for n in range(FILES)]
        (folder / "names").mkdir()
        for path in self._paths:
            path.touch()
        self._random = Random(1)  # noqa: S311 (an order, no secret)

    def seconds(self, enough: float) -> float:
        """Of one operation, over samples that together take so long; what each did is undone."""
        spent, done = 0.0, 0
        while spent < enough:
            chosen = self._random.sample(self._paths, self._count)
            if self._op == "create":
                for path in chosen:
                    path.unlink()
            spent += self._run(chosen)
            done += self._count
            if self._op == "unlink":
                for path in chosen:
                    path.touch()
        return spent / done

    def _run(self, chosen: list[Path]) -> float:
        words = [os.fspath(self._program), self._op[0], str(len(chosen))]
        lines = "".join(f"{path}\n" for path in chosen)
        ended = subprocess.run(words, input=lines, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise OSError(f"the loop in C: {ended.stderr.strip() or ended.returncode}")
        return float(ended.stdout)


def case(ctx: Context, op: str) -> Work:
    """Our case with the loop as its peer, which does as many operations in a sample."""
    work = metadata.prepare(ctx, op, "one", FILES)
    work.peer = Peer("C", Loop(ctx.scratch, op, work.steps).seconds)
    return work


def cases() -> Iterator[tuple[str, Make]]:
    """The operations whose rate a program meets."""
    for op in ("create", "stat", "open", "unlink"):
        yield f"metadata {op}", lambda ctx, o=op: case(ctx, o)


if __name__ == "__main__":
    sys.exit(main(str(__doc__), cases(), "" if shutil.which("cc") else "cc is not installed"))

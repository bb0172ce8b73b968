"""Print the requirements of this project (with the ``dev`` extra), one a line, without the packages named after ``--without``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def main() -> int:
    """Entry point."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    without = set(sys.argv[sys.argv.index("--without") + 1 :]) if "--without" in sys.argv else set[str]()
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        if re.split(r"[^\w-]", line, maxsplit=1)[0] not in without:
            sys.stdout.write(line.replace(" ", "") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

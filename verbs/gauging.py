"""``selftest`` and ``schema``: the gauge gauges itself, and what a record looks like."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from verbs.said import BROKEN, OK, alone, say


def do_selftest(options: argparse.Namespace) -> int:
    """The gauge gauges itself."""
    from clustergauge import code, gauged, machine, selftest
    from clustergauge.run import now_text
    from reports import selfcheck

    alone()
    result = selftest.run(short=options.short, say=say)
    selfcheck.show(result, options.format)
    here = machine.describe_apart().machine_id
    gauged.keep(gauged.of(result, here, code.digest(), now_text()), Path(options.output).absolute())
    return OK if result.passed else BROKEN


def do_schema(_options: argparse.Namespace) -> int:
    """JSON Schema of a record."""
    from clustergauge import schema

    print(json.dumps(schema.record_schema(), indent=2))
    return OK

"""Another probe of the name ``misbehave``: two of one name must be refused."""

from clustergauge.probe import Work, probe
from tests.faults import misbehaving


@probe("misbehave")
def twin(ctx) -> Work:
    """Never runs."""
    return misbehaving.misbehaving.function(ctx)

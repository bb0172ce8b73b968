"""What is found of the nodes of a fleet, of its racks and of its cases: plain data (`blame` finds it)."""

from __future__ import annotations

from typing import Literal

import msgspec

from clustergauge.model import Data

State = Literal["good", "suspect", "bad", "unmeasured"]
Kind = Literal["slow", "intermittent", "corrupting", "deviates", "link", "failed", "lost", "unmeasured", "unreadable"]


class Reason(Data, frozen=True, kw_only=True):
    """Why a machine is not good.

    ``kind``: *lost*: its agent was, in a case in which nothing had failed before.  ``device``: empty for the machine as a whole.
    ``ratio``: its speed over what is usual in its class.  ``confirmed``: fresh launches agree, or it needs no confirming (wrong
    bits, a missing part).
    """

    kind: Kind
    device: str = ""
    case: str = ""
    ratio: float | None = None
    confirmed: bool = False
    detail: str = ""


class Node(Data, frozen=True, kw_only=True):
    """One machine of the fleet.  ``parts``: identities of its GPUs, so that a replaced one is seen in a later run.

    ``run``: of a run that cannot be read, its folder; whose it is nobody knows, and ``host`` is empty.
    """

    host: str
    machine_id: str
    state: State
    rack: str = ""
    parts: list[str] = msgspec.field(default_factory=list[str])
    reasons: list[Reason] = msgspec.field(default_factory=list[Reason])
    cleared: int = 0
    """Cases in which it was suspected and fresh launches cleared it."""
    run: str = ""

    @property
    def name(self) -> str:
        """What to call it."""
        return self.host or self.run


class RackFinding(Data, frozen=True, kw_only=True):
    """A rack that is slower as a whole in a case."""

    rack: str
    case: str
    ratio: float
    devices: int


class CaseFinding(Data, frozen=True, kw_only=True):
    """What one case said in one class.  ``usual``: the median time (s); ``smallest``: the slowdown it would have shown."""

    case: str
    device: str
    peer_class: str
    devices: int
    usual: float
    low: float
    high: float
    smallest: float | None
    weak: bool


class Joint(Data, frozen=True):
    """A case over nodes that did not come to what it was to.  ``word``: its status, or the verdict on it."""

    case: str
    device: str
    word: str
    reason: str


class Fleet(Data, frozen=True, kw_only=True):
    """The judgement on a fleet, worst nodes first.

    ``joint``: cases over nodes that no single node is to blame for.  ``alone``: good nodes that no case held against others.
    """

    nodes: list[Node]
    cases: list[CaseFinding]
    racks: list[RackFinding]
    notes: list[str]
    joint: list[Joint] = msgspec.field(default_factory=list[Joint])
    alone: list[str] = msgspec.field(default_factory=list[str])

    def of(self, state: State) -> list[Node]:
        """The nodes in this state."""
        return [node for node in self.nodes if node.state == state]

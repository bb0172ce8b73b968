"""What spans several nodes of a run, tier by tier (`groups`): pairs, groups of them at once, everything.

A node that fails a tier is kept out of the next: what spans nodes would only say once more that it is bad.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from clustergauge import believed, groups, hosts
from clustergauge.conversation import Conversation, Died
from clustergauge.errors import unexpected
from clustergauge.model import Machine, Planned, Record
from clustergauge.run import Progress, carry_out, error_record
from clustergauge.store import StoreError
from clustergauge.team import Team
from clustergauge.threads import in_threads

if TYPE_CHECKING:
    from clustergauge.fleet import Left

Unfit = Callable[[Mapping[str, Machine], Sequence[Record]], dict[str, str]]
"""From the machines by name of the node and all records so far to the nodes that failed a tier, and how."""


class _Span:
    """Some nodes under one supervisor."""

    def __init__(self, left: Left, crew: Mapping[str, Conversation]) -> None:
        """Raises `Died` where all of them are gone."""
        self._left = left
        self._team = Team(crew)
        self._names = list(crew)
        self._supervisor = left.fleet.supervise("")
        self._supervisor.pins = left.fleet.pins
        try:
            self._supervisor.take(self._team)
        except Died:
            left.fleet.left_out |= self._team.lost
            raise

    @property
    def names(self) -> list[str]:
        """Of the nodes that are left."""
        return [site.name for site in self._team.sites]

    @property
    def notes(self) -> list[str]:
        """What a person should hear of it."""
        return self._supervisor.notes

    def measure(self, planned: Planned, came: Progress, stopped: Callable[[], bool]) -> None:
        """One case over the nodes that are left, two at least."""
        sites, left = self._team.sites, self._left
        fitted = msgspec.structs.replace(planned, ranks=planned.ranks // planned.nodes * len(sites))
        carry_out(left, left.run, [fitted], self._supervisor, sites[0].machine, left, came, left.stop_at, stopped=stopped)

    def leave(self) -> dict[str, Conversation]:
        """End the pool; the nodes that are left."""
        try:
            self._supervisor.hand_over()
        except Died as died:
            self._team.lost |= {name: str(died) for name in self._names if name not in self._team.lost}
        nodes = self._team.leave()
        self._left.fleet.left_out |= self._team.lost
        return nodes

    def quit(self) -> None:
        """See `Supervisor`."""
        self._supervisor.quit()

    def close(self) -> list[str]:
        """End the nodes; what a person should hear."""
        self._left.fleet.left_out |= self._team.lost
        self._supervisor.close()
        return self._supervisor.notes


class Spanning:
    """All tiers over the nodes of a run that are well; one that is lost meanwhile is left behind."""

    def __init__(self, left: Left, came: Progress, unfit: Unfit) -> None:
        self._left, self._came, self._unfit = left, came, unfit
        self._crew: dict[str, Conversation] = {}

    def measure(self, todo: Sequence[Planned]) -> None:
        """Take over the nodes, measure, and end their agents."""
        fleet = self._left.fleet
        try:
            self._keep_apart()
            self._take([name for name in fleet.machines if name not in fleet.apart and name not in fleet.left_out])
            for tier in groups.tiers(todo):
                if not self._came.problem:
                    self._keep_apart()
                    self._tier(tier)
        finally:
            self._end()

    def _take(self, names: Sequence[str]) -> None:
        """Take over nodes, all at once: each ends its pool first, which may take seconds."""
        fleet = self._left.fleet

        def take(name: str) -> None:
            try:
                node = fleet.supervisors[name].hand_over()
                assert isinstance(node, Conversation)
                self._crew[name] = node
            except Died as died:
                fleet.left_out[name] = str(died)

        in_threads(take, names)

    def _end(self) -> None:
        in_threads(lambda name: self._came.notes.extend(f"{name}: {note}" for note in self._crew[name].close()), self._crew)

    def _tier(self, tier: Sequence[Planned]) -> None:
        """One tier, and what of it is to be measured again."""
        at_once = hosts.is_group(tier[0].device)
        spans: dict[str, _Span] = {}
        try:
            for planned in {p.device if at_once else "": p for p in tier}.values():
                members = self._fit(planned)
                if len(members) > 1:
                    with contextlib.suppress(Died):  # all are gone, and named: what they owe gets a record that says so
                        spans[planned.device if at_once else ""] = _Span(self._left, {n: self._crew.pop(n) for n in members})
            self._measure(spans, tier, at_once)
            while any(len(span.names) > 1 for span in spans.values()) and (more := self._left.again(self._came, spanning=True)):
                self._measure(spans, more, at_once)
        except BaseException:
            self._left.stopping.set()
            for span in spans.values() if at_once else ():
                span.quit()
            self._left.join()
            for span in spans.values():
                self._came.notes += span.close()
            raise
        in_threads(lambda key: self._crew.update(spans[key].leave()), spans)
        for span in spans.values():
            self._came.notes += span.notes

    def _measure(self, spans: Mapping[str, _Span], todo: Sequence[Planned], at_once: bool) -> None:
        """Cases one after the other, each over all groups at once."""
        turns: dict[tuple[str, int, str], dict[str, Planned]] = {}
        for planned in todo:
            key = planned.device if at_once else ""
            turns.setdefault((planned.case, planned.launch, "" if at_once else planned.device), {})[key] = planned
        for turn in turns.values():
            for key, planned in list(turn.items()):
                names = spans[key].names if key in spans else self._fit(planned)
                if len(names) < 2:
                    self._none(turn.pop(key), names)
            if at_once:
                self._together(spans, turn)
            else:
                for key, planned in turn.items():
                    spans[key].measure(planned, self._came, lambda: False)

    def _together(self, spans: Mapping[str, _Span], turn: Mapping[str, Planned]) -> None:
        left, own = self._left, {key: Progress() for key in turn}

        def measure(key: str) -> None:
            try:
                spans[key].measure(turn[key], own[key], left.stopping.is_set)
            except StoreError as error:
                self._came.problem = str(error)
                left.stopping.set()
            except Exception as error:  # noqa: BLE001 (whatever it is, it is this group's alone, and a thread tells nobody)
                self._owe(turn[key], unexpected(error))

        left.all_of(measure, list(turn))
        self._came.case_seconds += max((progress.case_seconds for progress in own.values()), default=0.0)
        self._came.not_reached += [p for progress in own.values() for p in progress.not_reached]

    def _fit(self, planned: Planned) -> list[str]:
        """The nodes of a case that we have and that are well."""
        fleet = self._left.fleet
        return [n for n in hosts.expand(planned.hosts) if n in self._crew and n not in fleet.apart and n not in fleet.left_out]

    def _keep_apart(self) -> None:
        fleet = self._left.fleet
        told = [r for r in self._left.recorded if not hosts.tells_of_lost(r.reason, fleet.left_out)]
        failed = self._failed() | self._unfit(fleet.machines, told)
        fleet.apart |= {name: why for name, why in failed.items() if name not in fleet.apart}

    def _failed(self) -> dict[str, str]:
        """Nodes that failed a node-local case or were lost in one, and how.  What failed on all alike says nothing of one."""
        names = {machine.machine_id: name for name, machine in self._left.fleet.machines.items()}
        bad = [r for r in self._left.recorded if r.machine_id in names and believed.is_bad(r) and not hosts.spans(r.device)]
        where: dict[tuple[str, str], set[str]] = {}
        for record in bad:
            where.setdefault((record.case, record.status), set()).add(record.machine_id)
        found: dict[str, str] = {}
        for record in bad:
            if len(names) == 1 or len(where[record.case, record.status]) < len(names):
                name = names[record.machine_id]
                words = f"failed {record.case}: {record.reason or 'its hardware counted errors'}"
                found.setdefault(name, record.reason if hosts.went_with(record.reason, name) else words)
        return found

    def _none(self, planned: Planned, fit: Sequence[str]) -> None:
        """The record of a case for which too few nodes are left."""
        fleet = self._left.fleet
        out = fleet.left_out | fleet.apart
        why = "; ".join(f"{name}: {reason}" for name, reason in list(out.items())[:8])
        self._owe(planned, f"needs two nodes, {', '.join(fit) or 'none'} is left ({why})")

    def _owe(self, planned: Planned, reason: str) -> None:
        """The record of a case that was not measured, and why."""
        if machine := next(iter(self._left.fleet.machines.values()), None):
            self._left.done(self._left.append(error_record(self._left.run, machine, planned, reason)))

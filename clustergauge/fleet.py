"""Many nodes in one run: their agents, started at once; node-local cases on all of them at once; `spanning`, what spans them.

A node that cannot be had, runs other code, or is lost is named and the others go on.  One that fails a tier is kept out of the
next: what spans nodes would only say once more that it is bad.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from clustergauge import hosts, meeting
from clustergauge.conversation import Conversation, Died
from clustergauge.errors import unexpected
from clustergauge.forecast import in_a_row, predict
from clustergauge.free import Free
from clustergauge.model import Machine, Planned, Record, Run
from clustergauge.pins import Pins
from clustergauge.plan_nodes import short_of_gpus
from clustergauge.remote import Desk
from clustergauge.run import Again, Progress, Watcher, carry_out, closing, skipped_record, worst_findings
from clustergauge.spanning import Spanning, Unfit
from clustergauge.store import RunFolder, StoreError
from clustergauge.supervise import Supervisor
from clustergauge.threads import in_threads, started

COMPARED = ("python", "torch", "triton", "numpy", "mpi4py", "mpich", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
"""Versions that must be alike for ranks to work together (`Machine.versions`)."""
JOIN_S = 60.0
"""How long the ends of all nodes' cases are waited for after an interrupt."""


@dataclass
class Fleet:
    """The nodes of a run, by the names that the user gave them.

    ``left_out``: nodes that are not measured (any more), and why.  ``apart``: nodes measured alone only, and why.  ``pins``: what
    kernels were tuned to, on all of them.  ``shared``: which nodes share which target.
    """

    desk: Desk
    supervise: Callable[[str], Supervisor]
    supervisors: dict[str, Supervisor] = field(default_factory=dict[str, Supervisor])
    machines: dict[str, Machine] = field(default_factory=dict[str, Machine])
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    apart: dict[str, str] = field(default_factory=dict[str, str])
    pins: Pins = field(default_factory=Pins)
    shared: meeting.Groups = field(default_factory=meeting.Groups)

    def assemble(self, targets: Sequence[str]) -> None:
        """Start all agents at once; each has the same time, and none waits for another."""

        def start(name: str) -> None:
            supervisor = self.supervise(name)
            supervisor.pins = self.pins
            try:
                machine = supervisor.start(targets)
            except Died as died:
                self.left_out[name] = str(died)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is this node's alone, and a thread tells nobody)
                self.left_out[name] = unexpected(error)
            else:
                self.supervisors[name], self.machines[name] = supervisor, machine

        in_threads(start, self.desk.names)
        self.machines = {name: self.machines[name] for name in self.desk.names if name in self.machines}
        seen: dict[str, str] = {}
        for name, machine in list(self.machines.items()):
            first = next((seen[own] for own in (machine.machine_id, machine.host) if own in seen), name)
            seen |= dict.fromkeys((machine.machine_id, machine.host), first)
            if first != name:
                self.left_out[name] = f"it is the same machine as {first}"
                del self.machines[name]
                self.supervisors.pop(name).close()
        self.apart |= odd_ones(self.machines)

    def free(self) -> dict[str, Mapping[str, Free]]:
        """By node what it said, when it was called, is free in its targets."""
        sites = {name: node.sites for name in self.machines if (node := self.supervisors[name].node)}
        return {name: site.free for name, (site,) in sites.items()}

    def meet(self, targets: Sequence[str]) -> None:
        """Find out which nodes share which of the targets."""
        nodes = {name: node for name in self.machines if isinstance(node := self.supervisors[name].node, Conversation)}
        self.shared = meeting.groups(nodes, targets, self.desk.token)

    def close(self) -> list[str]:
        """End all agents at once, and what they started; what a person should hear."""
        in_threads(lambda name: self.supervisors[name].close(), list(self.supervisors))
        self.desk.close()
        of_note: dict[str, dict[str, None]] = {}
        for name, supervisor in self.supervisors.items():
            for note in supervisor.notes:
                of_note.setdefault(note, {})[name] = None
        return [f"{hosts.compress(names)}: {note}" for note, names in of_note.items()]

    def stop(self) -> None:
        """Have all agents end what they do, now."""
        in_threads(lambda name: self.supervisors[name].quit(), list(self.supervisors))


def odd_ones(machines: Mapping[str, Machine]) -> dict[str, str]:
    """Nodes with other versions than most, and which: ranks of theirs cannot be expected to work with the others'."""
    sets = {name: tuple(machine.versions.get(package, "") for package in COMPARED) for name, machine in machines.items()}
    if not sets:
        return {}
    usual = Counter(sets.values()).most_common(1)[0][0]
    return {
        name: "other versions than most nodes: "
        + ", ".join(
            f"{package} {own or 'absent'} (there {theirs or 'absent'})"
            for package, own, theirs in zip(COMPARED, versions, usual, strict=True)
            if own != theirs
        )
        for name, versions in sets.items()
        if versions != usual
    }


def turns(todo: Mapping[str, Sequence[Planned]]) -> list[dict[str, list[Planned]]]:
    """What nodes measure in turn (`Planned.in_turn`), by node: in each turn one of every group of nodes that share a target."""
    waiting: dict[str, dict[str, list[Planned]]] = {}
    for name, planned in todo.items():
        for one in planned:
            if one.in_turn and not one.skip:
                waiting.setdefault(one.in_turn, {}).setdefault(name, []).append(one)
    found: list[dict[str, list[Planned]]] = []
    while waiting:
        turn: dict[str, list[Planned]] = {}
        for first, of_node in list(waiting.items()):
            if name := next((name for name in of_node if name not in turn), ""):
                turn[name] = of_node.pop(name)
            if not of_node:
                del waiting[first]
        found.append(turn)
    return found


def conduct(
    folder: RunFolder,
    run: Run,
    fleet: Fleet,
    watcher: Watcher,
    recorded: Sequence[Record] = (),
    stop_after_s: float | None = None,
    earlier: Mapping[str, Machine] | None = None,
    again: Again | None = None,
    unfit: Unfit = lambda _, __: {},
) -> Progress:
    """Measure what has no record yet, to the end of the last agent; what was measured is kept in any case.

    ``recorded``, ``earlier``: of a run that is resumed.  ``again``: what else to measure, asked after the cases of single nodes
    and after every tier of what spans them, until it names nothing more or the time is over.  ``unfit``: see `spanning`.  Once
    this returns the folder is finished and closed.
    """
    came, began = Progress(), time.monotonic()
    left = Left(folder, run, fleet, watcher, recorded, began + stop_after_s if stop_after_s else None, again)
    try:
        for record in recorded:
            fleet.pins.learn(record.settings, {})
        for machine in fleet.machines.values():
            before = (earlier or {}).get(machine.machine_id)
            findings = worst_findings(before.findings, machine.findings) if before else machine.findings
            folder.write_machine(msgspec.structs.replace(machine, findings=findings))
        fleet.apart = short_of_gpus(fleet.machines, run.planned) | fleet.apart
        left.record_skipped()
        local, together = left.local(), left.together()
        todo = [p for planned in local.values() for p in planned] + together
        longest = max((in_a_row([p for p in own if not p.in_turn]) for own in local.values()), default=0.0)
        in_turn = [msgspec.structs.replace(p, hosts=name) for name, own in local.items() for p in own if p.in_turn]
        watcher.start(sum(not p.skip for p in todo), longest + predict([*in_turn, *together]))
        left.measure_local(local, came)
        while not came.problem and (more := left.again(came, spanning=False)):
            left.measure_local(left.of_nodes(more), came)
        if together and not came.problem:
            Spanning(left, came, unfit).measure(together)
    except KeyboardInterrupt:
        came.interrupted = True
    except (Died, StoreError) as error:
        came.problem = str(error)
    finally:
        with closing(folder, left.run, came, watcher, began) as end:
            left.stopping.set()
            fleet.stop() if came.interrupted else None
            left.join()
            came.notes = list(dict.fromkeys([*came.notes, *fleet.close()]))
            end.left_out = fleet.left_out | fleet.apart
    return came


class Left:
    """What is left to measure, and the folder and the display that all nodes' threads share."""

    def __init__(
        self,
        folder: RunFolder,
        run: Run,
        fleet: Fleet,
        watcher: Watcher,
        recorded: Sequence[Record],
        stop_at: float | None,
        again: Again | None = None,
    ) -> None:
        self.folder, self.run, self.fleet, self.watcher, self.stop_at = folder, run, fleet, watcher, stop_at
        self._again = again
        self.recorded = list(recorded)
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def local(self) -> dict[str, list[Planned]]:
        """The node-local cases of each node that have no record."""
        return self.of_nodes([p for p in self.run.planned if p.nodes == 1])

    def of_nodes(self, planned: Sequence[Planned]) -> dict[str, list[Planned]]:
        """What of these node-local cases each node has to measure."""
        done = {(r.case, r.device, r.launch, r.machine_id) for r in self.recorded}
        members = {p.hosts: set(hosts.expand(p.hosts)) for p in planned if p.hosts}
        return {
            name: [
                p for p in planned if name in members[p.hosts] and (p.case, p.device, p.launch, machine.machine_id) not in done
            ]
            for name, machine in self.fleet.machines.items()
        }

    def again(self, came: Progress, spanning: bool) -> list[Planned]:
        """What is to be measured again, over several nodes or (not ``spanning``) on single ones; from now on it is planned."""
        late = self.stop_at is not None and time.monotonic() >= self.stop_at
        if not self._again or late or came.not_reached or self.stopping.is_set():
            return []
        machines = {machine.machine_id: machine for machine in self.fleet.machines.values()}
        more = [p for p in self._again(self.run.planned, machines, self.recorded) if (p.nodes > 1) == spanning]
        if more:
            self.run = msgspec.structs.replace(self.run, planned=[*self.run.planned, *more])
            self.folder.update(self.run)
            local = 0 if spanning else sum(map(len, self.of_nodes(more).values()))  # one is for several nodes
            self.watcher.start(local or len(more), predict(more))
        return more

    def together(self) -> list[Planned]:
        """The cases over several nodes that have no record."""
        done = {(r.case, r.device, r.launch) for r in self.recorded}
        return [p for p in self.run.planned if p.nodes > 1 and (p.case, p.device, p.launch) not in done]

    def record_skipped(self) -> None:
        """Cases over nodes that were skipped when planned have their record, whoever will be left and however the run ends."""
        for machine in list(self.fleet.machines.values())[:1]:
            for planned in self.together():
                if planned.skip:
                    self.append(skipped_record(self.run, machine, planned))

    def measure_local(self, todo: Mapping[str, Sequence[Planned]], came: Progress) -> None:
        """On all nodes at once, each at its own pace; then, node by node, what is to be measured in turn."""
        self._at_once({name: [p for p in planned if p.skip or not p.in_turn] for name, planned in todo.items()}, came)
        for some in turns(todo):
            if not (self.stopping.is_set() or came.problem):
                self._at_once(some, came)

    def _at_once(self, todo: Mapping[str, Sequence[Planned]], came: Progress) -> None:
        own = {name: Progress() for name in todo}

        def measure(name: str) -> None:
            machine, supervisor = self.fleet.machines[name], self.fleet.supervisors[name]
            try:
                carry_out(
                    self, self.run, todo[name], supervisor, machine, self, own[name], self.stop_at, stopped=self.stopping.is_set
                )
            except StoreError as error:
                came.problem = str(error)
                self.stopping.set()
            except Exception as error:  # noqa: BLE001 (as in `Fleet.assemble`)
                self.fleet.left_out[name] = unexpected(error)
                came.notes.append(f"{name}: {unexpected(error)}")

        self.all_of(measure, list(todo))
        gone = {name: why for name in todo if (why := self.fleet.supervisors[name].given_up)}
        self.fleet.left_out = gone | self.fleet.left_out
        came.case_seconds += max((progress.case_seconds for progress in own.values()), default=0.0)
        came.not_reached += [p for progress in own.values() for p in progress.not_reached]

    def all_of(self, function: Callable[[str], object], names: Sequence[str]) -> None:
        """As `in_threads`, but Ctrl-C is heard; `join` waits for what then still runs."""
        self._threads = started(function, names)
        while any(thread.is_alive() for thread in self._threads):
            time.sleep(0.05)  # join would not hear Ctrl-C

    def join(self) -> None:
        """Wait for what the nodes' threads still do."""
        until = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    # -- the folder and the display, for one thread at a time

    def append(self, record: Record) -> Record:
        """See `RunFolder`."""
        with self._lock:
            self.folder.append(record)
            self.recorded.append(record)
        return record

    def write_log(self, name: str, text: str) -> str:
        """See `RunFolder`."""
        with self._lock:
            return self.folder.write_log(name, text)

    def write_file(self, name: str, content: bytes) -> str:
        """See `RunFolder`."""
        with self._lock:
            return self.folder.write_file(name, content)

    def start(self, total: int, seconds: float) -> None:
        """See `Watcher`."""
        self.watcher.start(total, seconds)

    def case(self, planned: Planned) -> None:
        """See `Watcher`."""
        with self._lock:
            self.watcher.case(planned)

    def done(self, record: Record) -> None:
        """See `Watcher`."""
        with self._lock:
            self.watcher.done(record)

    def stop(self) -> None:
        """See `Watcher`."""

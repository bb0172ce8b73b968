"""Messages between two ranks, the first and the last: latency of a ping-pong, bandwidth one way and both ways.

``pingpong``: a message there and one back, one after the other; a time is that of one message, half the round trip, as in
osu_latency.  ``unidirectional``: a window of messages in flight one way, then a short answer (as osu_bw: 64 messages; fewer
where 64 exceed 256 MiB).  ``bidirectional``: both ranks do so at once; the rate is that of one direction, as nccl-tests has it
(osu_bibw prints the sum of both).  All messages of a window come from one buffer; each arrives in its own, where it is compared
bit for bit.

Over MPI requests are persistent (MPI_Send_init), so that a window is started with one call.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from clustergauge.model import Workload
from clustergauge.probe import Context, Needs, Skip, Work, probe
from clustergauge.units import format_size
from collectives import bare, buffers, exact, over_mpi, over_torch
from collectives.layout import Block
from collectives.operations import SIZES, bound, needs as needs_of_collectives

MODES = ("pingpong", "unidirectional", "bidirectional")
WINDOW = 64
"""Messages in flight, as osu_bw has by default."""
WINDOW_BYTES = 2**28
_DTYPE = "int32"
"""Four bytes: what is compared at a time."""


def needs(backend: str, **_axes: object) -> Needs:
    """As the collectives."""
    return needs_of_collectives(backend)


@probe("send_recv", needs=needs, backend=buffers.BACKENDS, mode=MODES, size=SIZES)
def send_recv(ctx: Context, backend: str, mode: str, size: int) -> Work:
    """Messages between the first and the last rank.  size: bytes of one message."""
    length, rest = divmod(size, exact.FORMATS[_DTYPE].bytes)
    if rest or not length:
        raise Skip(f"{format_size(size)} is not a whole number of four bytes")
    ranks = ctx.world.size
    if ranks < 2:
        raise Skip("one rank has nobody to talk to")
    window = 1 if mode == "pingpong" else max(1, min(WINDOW, WINDOW_BYTES // size))
    made = buffers.buffers(ctx, backend, _DTYPE)
    mpi = backend in ("mpi", "mpi_device")
    world = over_mpi.world_of(ctx) if mpi else over_torch.world_of(ctx, backend)
    if backend == "mpi_device":
        over_mpi.require_device_buffers()
    ends = (0, ranks - 1)
    sends = world.rank == ends[0] or (world.rank == ends[1] and mode != "unidirectional")
    receives = world.rank == ends[1] or (world.rank == ends[0] and mode != "unidirectional")
    buffers.require(ctx, backend, (sends + window * receives) * size)
    ctx.set("pair", f"{ends[0]}-{ends[1]}")
    ctx.set("window", window)
    peer = ends[1] if world.rank == ends[0] else ends[0]
    send = made.empty(length) if sends else None
    if send is not None:
        exact.fill(send, made.moved(Block("data", world.rank).bits(_DTYPE, ranks, length)))
    receive = made.empty(length * window) if receives else None
    answer = made.empty(1)
    answer[:] = 0
    expected = made.moved(Block("data", peer).bits(_DTYPE, ranks, length))

    def reset() -> None:
        if receive is not None:
            receive[:] = -1
        made.settle()

    def check() -> None:
        if receive is not None:
            exact.compare_blocks(receive, length, [expected] * window, _DTYPE, world.rank)

    slots = [] if receive is None else [receive[start : start + length] for start in range(0, length * window, length)]
    run: Callable[[], object] = _idle
    if world.rank in ends:
        bind = functools.partial(_over_mpi, world.comm) if isinstance(world, over_mpi.Mpi) else _over_torch
        run = bind(mode, world.rank == ends[0], peer, send, slots, window, answer)
    if mpi:
        over_mpi.note_way(ctx, run)
    return Work(
        run=run,
        reset=reset,
        check=check,
        workload=Workload(message_bytes=size, collective="send_recv", bound="latency" if mode == "pingpong" else bound(size)),
        clock="device" if backend == "nccl" else "wall",
        sync=True,
        loop=True,
        steps=2 if mode == "pingpong" else window,
    )


def _idle() -> None:
    """What the ranks in between do."""


def _over_mpi(
    comm: Any, mode: str, first: bool, peer: int, send: Any, slots: list[Any], window: int, answer: Any
) -> Callable[[], object]:
    from mpi4py import MPI

    def spec(buffer: Any) -> Any:
        return [over_mpi.as_memory(buffer), len(buffer) * buffer.itemsize, MPI.BYTE]

    statuses = ctypes.create_string_buffer(bare.STATUS_BYTES * 2 * window)
    ignored = ctypes.addressof(statuses)

    def one(what: Any, sends: bool) -> list[bare.Call]:
        """A message to or from the peer as C sends it; none where it cannot."""
        given = over_mpi.c_spec(what)
        if given is None or not isinstance(comm, MPI.Comm):
            return []
        if sends:
            return [bare.Call("MPI_Send", (*given, peer, 0, bare.handle(comm)))]
        return [bare.Call("MPI_Recv", (*given, peer, MPI.ANY_TAG, bare.handle(comm), ignored))]

    if mode == "pingpong":
        there, back = (comm.Send, comm.Recv) if first else (comm.Recv, comm.Send)
        there_what, back_what = (spec(send), spec(slots[0])) if first else (spec(slots[0]), spec(send))
        calls = [*one(there_what, first), *one(back_what, not first)]
        if len(calls) == 2 and (as_in_c := bare.function(calls, (there_what, back_what, statuses))):
            return as_in_c

        def pingpong() -> None:
            there(there_what, peer)
            back(back_what, peer)

        return pingpong
    requests = [comm.Recv_init(spec(slot), peer, 1) for slot in slots]
    if send is not None:
        requests += [comm.Send_init(spec(send), peer, 1) for _ in range(window)]
    start, wait = MPI.Prequest.Startall, MPI.Request.Waitall
    last, told = (comm.Recv if first else comm.Send), spec(answer)
    handles = bare.array(requests)
    several = (len(requests), ctypes.addressof(handles))
    calls = [bare.Call("MPI_Startall", several), bare.Call("MPI_Waitall", (*several, ignored)), *one(told, not first)]
    if len(calls) == 3 and (as_in_c := bare.function(calls, (requests, handles, told, statuses))):
        return as_in_c

    def windowed() -> None:
        start(requests)
        wait(requests)
        last(told, peer)

    return windowed


def _over_torch(mode: str, first: bool, peer: int, send: Any, slots: list[Any], window: int, answer: Any) -> Callable[[], object]:
    import torch.distributed

    dist: Any = torch.distributed
    if mode == "pingpong":
        there, back = (dist.send, dist.recv) if first else (dist.recv, dist.send)
        there_what, back_what = (send, slots[0]) if first else (slots[0], send)

        def pingpong() -> None:
            there(there_what, peer)
            back(back_what, peer)

        return pingpong
    operations = [dist.P2POp(dist.irecv, slot, peer) for slot in slots]
    if send is not None:
        operations += [dist.P2POp(dist.isend, send, peer) for _ in range(window)]
    start, last = dist.batch_isend_irecv, (dist.recv if first else dist.send)

    def windowed() -> None:
        for request in start(operations):
            request.wait()
        last(answer, peer)

    return windowed

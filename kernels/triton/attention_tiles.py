"""Attention in Triton: the tiles each architecture gets.

Configurations compile without spilling registers as `kernels.triton.attention.gate_entries` lists them; where there are several a
case chooses (`clustergauge.tuning`).  Tiles are moved by the copy engine (TMA) from Hopper on, with warp specialisation in
Blackwell's forward kernel; by pointers with cp.async on Ampere, Ada and consumer Blackwell (99 KiB of shared memory), with two
stages on AMD.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clustergauge.probe import Skip


@dataclass(frozen=True)
class Tile:
    """Queries × keys that a program handles at a time, and how it is run."""

    bm: int
    bn: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.bm}x{self.bn}, {self.warps} warps, {self.stages} stages"


@dataclass(frozen=True)
class Config:
    """What one architecture gets for one head size.  ``keys``: the kernel of dK and dV; ``queries``: that of dQ.

    ``decode``: ``bm`` is the least number of padded query heads.  ``tma``: tiles move by descriptors; ``ws``: warp-specialised.
    ``ragged_keys``: in the place of ``keys`` where that would spill registers (`fitted`).
    """

    forward: Tile
    keys: Tile
    queries: Tile
    decode: Tile
    tma: bool = False
    ws: bool = False
    ragged_keys: Tile | None = None

    def describe(self, mode: str) -> str:
        """For a record: the tiles of the kernels that a mode runs."""
        tiles = f"dK dV {self.keys}; dQ {self.queries}" if mode == "backward" else str(getattr(self, mode))
        moved = " by TMA" if self.tma and mode != "decode" else ""
        return f"{tiles}{moved}{', warp-specialised' if self.ws and mode == 'forward' else ''}"


_SMALL = Config(Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(16, 32, 4, 2))
_AMPERE = {
    64: Config(Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(128, 64, 8, 2), Tile(16, 64, 4, 3)),
    128: Config(Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(128, 32, 8, 2), Tile(16, 64, 4, 3)),
}
_HOPPER = {
    64: Config(Tile(128, 64, 8, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), Tile(16, 64, 4, 3), tma=True),
    128: Config(
        Tile(128, 128, 8, 2),
        Tile(64, 128, 8, 2),
        Tile(128, 64, 8, 2),
        Tile(16, 64, 4, 3),
        tma=True,
        ragged_keys=Tile(32, 128, 8, 2),
    ),
}
_BLACKWELL = {
    64: Config(Tile(128, 128, 8, 2), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), Tile(16, 64, 4, 3), tma=True, ws=True),
    128: Config(Tile(128, 128, 8, 2), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), Tile(16, 64, 4, 3), tma=True, ws=True),
}
_CONSUMER_BLACKWELL = _AMPERE | {64: replace(_AMPERE[64], ragged_keys=Tile(32, 64, 8, 2))}
_CDNA = {
    64: Config(Tile(128, 64, 4, 2), Tile(16, 128, 8, 2), Tile(64, 64, 4, 2), Tile(16, 64, 4, 2)),
    128: Config(Tile(128, 32, 8, 2), Tile(16, 64, 4, 2), Tile(128, 32, 8, 2), Tile(16, 64, 4, 2)),
}
"""Larger tiles of the backward kernels spill; so does 128×64 of the forward kernel for bf16."""
CONFIGS: dict[str, dict[int, Config]] = {
    "interpreter": {64: _SMALL, 128: _SMALL},
    "sm_8": _AMPERE,
    "sm_9": _HOPPER,
    "sm_10": _BLACKWELL,
    "sm_12": _CONSUMER_BLACKWELL,
    "gfx942": _CDNA,
    "gfx950": _CDNA,
}
"""By architecture (for NVIDIA the major version of the capability) and head size."""
OTHERS: dict[str, dict[int, dict[str, Tile]]] = {
    "sm_80": {
        64: {"forward": Tile(128, 64, 4, 3), "decode": Tile(16, 128, 4, 2)},
        128: {"forward": Tile(64, 64, 4, 3), "decode": Tile(16, 32, 4, 4)},
    },
    "sm_9": {
        64: {"forward": Tile(128, 128, 8, 2), "queries": Tile(64, 64, 4, 2), "decode": Tile(16, 128, 4, 2)},
        128: {"forward": Tile(128, 64, 8, 3), "queries": Tile(64, 64, 4, 2), "decode": Tile(16, 128, 4, 2)},
    },
    "sm_10": {
        64: {"forward": Tile(128, 64, 8, 3), "decode": Tile(16, 128, 4, 2)},
        128: {"forward": Tile(128, 64, 8, 3), "decode": Tile(16, 128, 4, 2)},
    },
}
"""What may be faster in the place of a tile of `CONFIGS`: a launch tries it (`candidates`).  They compile as well."""


def configuration(arch: str, head_dim: int) -> Config:
    """Raises `Skip` if there is none for the architecture."""
    family = _family(arch)
    if head_dim not in CONFIGS.get(family, {}):
        raise Skip(f"the Triton attention has no configuration for head size {head_dim} on {arch}")
    return CONFIGS[family][head_dim]


def candidates(arch: str, head_dim: int, mode: str, queries: int, causal: bool) -> list[Config]:
    """What may run a mode, the one to be had without trying first; `fitted`.  Raises `Skip` if there is none."""
    found = [fitted(configuration(arch, head_dim), queries, causal)]
    for name in ("keys", "queries") if mode == "backward" else (mode,):
        tile = others(arch, head_dim).get(name)
        found += [replace(config, **{name: tile}) for config in found] if tile else []
    return found


def others(arch: str, head_dim: int) -> dict[str, Tile]:
    """What may be faster than which tile of the `configuration`."""
    return OTHERS.get(arch if arch in OTHERS else _family(arch), {}).get(head_dim, {})


def _family(arch: str) -> str:
    return arch[:-1] if arch.startswith("sm_") else arch


def fitted(config: Config, queries: int, causal: bool) -> Config:
    """With ``ragged_keys`` (if any) in the place of ``keys``: for the full mask and queries that ``keys`` does not divide."""
    if config.ragged_keys and not causal and queries % config.keys.bm:
        return replace(config, keys=config.ragged_keys)
    return config

"""How the kernels for attention over space cut up heads and tokens, and whether a chip has room."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from animate_jax.kernels.dispatch import fast_memory, reserve
from animate_jax.kernels.parts import LANES

BLOCKS = 1024, 512, 256, 128  # of tokens
KEY_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Plan:
    """How heads and tokens are cut up."""

    heads: int
    width: int  # channels of a head
    queries: int  # tokens of a block
    lengths: tuple[int, ...]  # keys of each source
    dtype: jnp.dtype

    @property
    def together(self) -> int:
        """Heads of a group: as many as fit side by side in the lanes."""
        fitting = max(1, LANES // self.width)
        return max(n for n in range(1, fitting + 1) if self.heads % n == 0)

    @property
    def groups(self) -> int:
        return self.heads // self.together

    @property
    def channels(self) -> int:
        """Of a group."""
        return self.together * self.width

    @property
    def rows(self) -> int:
        """Rows of a head's values with the row of ones below, rounded up."""
        return up(self.width + 1, 16)

    def memory(self, backward: bool) -> int:
        """Bytes of fast memory: what is moved is there twice; and the scores."""
        item, lanes = self.dtype.itemsize, up(self.channels, LANES)
        keys = sum(up(length, LANES) for length in self.lengths)
        moved = (2 * keys + 2 * self.queries) * self.channels * item
        kept = keys * (lanes + self.together * self.rows) * item
        if backward:
            moved = (4 * keys + 4 * self.queries) * self.channels * item
            kept = keys * (2 * lanes * item + 2 * 4 * self.channels)
        scores = 4 * self.queries * KEY_BLOCK
        return 2 * moved + kept + (6 if backward else 4) * scores

    def fits(self, backward: bool) -> bool:
        """Whether the fast memory has room for it."""
        return self.memory(backward) + reserve() <= fast_memory()


def plan_of(query, key, reference, heads) -> Plan:
    """Of arrays before they are turned: query (B, F, N, C), key (B, F, M, C).

    The most queries at a time of which the gradient fits, too; else of which the result does.
    """
    lengths = (key.shape[2],) if reference is None else (key.shape[2], reference[0].shape[1])
    width = query.shape[-1] // heads
    plans = [Plan(heads, width, block_of(query.shape[2], n), lengths, query.dtype) for n in BLOCKS]
    fitting = (plan for backward in (True, False) for plan in plans if plan.fits(backward))
    return next(fitting, plans[-1])


def up(n: int, multiple: int) -> int:
    """Rounded up."""
    return -(-n // multiple) * multiple


def block_of(tokens: int, most: int) -> int:
    """The largest block of at most `most` tokens that divides them, rounded up to 128."""
    return next(b for b in BLOCKS if b <= most and up(tokens, LANES) % b == 0)

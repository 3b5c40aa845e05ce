"""Train and validation by source video, so that no source is in both."""

import hashlib
from collections.abc import Iterable, Mapping

TRAIN, VALIDATION = "train", "validation"


def assign_splits(
    sources: Iterable[str],
    *,
    validation: float,
    seed: int,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Each source -> "train" or "validation".

    A source's place depends on its name and the seed alone: a hash in [0, 1) below `validation` is
    validation. `fixed` names sources whose place is given. Where `validation` > 0 and one of the
    two would stay empty, the free source nearest to the border changes sides.
    """
    fixed = fixed or {}
    places = {source: _place(source, seed) for source in sources}
    result = {
        source: fixed.get(source, VALIDATION if place < validation else TRAIN)
        for source, place in places.items()
    }
    free = sorted((places[source], source) for source in places if source not in fixed)
    if validation > 0 and len(result) > 1 and free:
        if VALIDATION not in result.values():
            result[free[0][1]] = VALIDATION
        elif TRAIN not in result.values():
            result[free[-1][1]] = TRAIN
    return result


def _place(source, seed):
    digest = hashlib.sha256(f"{seed}\0{source}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

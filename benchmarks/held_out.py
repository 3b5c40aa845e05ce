"""The pairs that models are compared on: puppets and motions that no training has seen.

    python benchmarks/held_out.py DIR

draws 32 motions, each by two characters, and writes DIR/pairs.json: 32 characters with their own
motion, and 32 with the skeleton of another body, retargeted to theirs. To be compared with

    animate-jax evaluate --data DIR/puppets --split all --pairs-file DIR/pairs.json ...
"""

import argparse
import json
from pathlib import Path

from animate_jax.files import replacing
from data_prep.puppets.generate import PuppetSet, generate

SEED = 20231128  # that of the trainings is 0
MOTIONS, FRAMES, SIZE = 32, 16, 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    write_held_out(parser.parse_args().directory)


def write_held_out(directory: Path, motions: int = MOTIONS):
    """Puppets of FRAMES + 1 frames, the first of which is the reference, and pairs.json."""
    puppets = PuppetSet(2 * motions, SIZE, SIZE, SEED, frames=FRAMES + 1, group=2)
    generate(puppets, directory / "puppets", overwrite=True)
    pairs = []
    for first in range(0, 2 * motions, 2):
        own, other = f"{first:06d}", f"{first + 1:06d}"
        pairs += [_pair("own", own, own), _pair("cross", other, own)]
    with replacing(directory / "pairs.json") as temporary:
        temporary.write_text(json.dumps({"pairs": pairs}, indent=1) + "\n", encoding="utf-8")


def _pair(kind, character, driving):
    return {
        "name": f"{kind}_{character}",
        "reference": character,
        "driving": driving,
        "truth": character,
        "frames": FRAMES,
    }


if __name__ == "__main__":
    main()

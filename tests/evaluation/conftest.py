"""Puppets to evaluate on: two motions, each performed by two characters."""

import sys
from pathlib import Path

import pytest

from data_prep.puppets.generate import PuppetSet, generate

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def puppets(tmp_path_factory):
    """A clip directory: 000000 and 000001 move alike, and so do 000002 and 000003."""
    directory = tmp_path_factory.mktemp("evaluation") / "puppets"
    wanted = PuppetSet(clips=4, width=96, height=128, seed=3, frames=10, group=2)
    generate(wanted, directory, progress=False)
    return directory

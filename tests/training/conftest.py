"""Records to train on, small enough to be made for every run of the tests."""

import pytest

from data_prep.puppets.generate import PuppetSet, generate
from data_prep.records import write_records


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Ten clips of 24 frames, 64x64 pixels, some of them for validation."""
    directory = tmp_path_factory.mktemp("training")
    puppets = PuppetSet(clips=10, width=64, height=64, seed=5, frames=24)
    generate(puppets, directory / "puppets", progress=False)
    write_records(directory / "puppets", directory / "records", validation=0.2, progress=False)
    return directory / "records"

import pytest
from moore_layout import write_moore_layout

from animate_jax.config import tiny
from animate_jax.weights.convert import convert_moore


@pytest.fixture(scope="session")
def moore_layout(tmp_path_factory):
    """The released files with random float32 weights, small."""
    return write_moore_layout(tmp_path_factory.mktemp("moore"), tiny())


@pytest.fixture(scope="session")
def model_directory(moore_layout, tmp_path_factory):
    """`moore_layout` converted."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    convert_moore(moore_layout.folder, directory, motion_heads=4, progress=False)
    return directory

"""Fixtures of the tests of exported files."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dpt_zoo.data.digits import digit_scene, read_digits

DEMOS = ("retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits")


@pytest.fixture(scope="session", params=DEMOS)
def demo(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def scenes() -> list[NDArray[np.uint8]]:
    """Return eight scenes of digits, 192x192 pixels."""
    digits = read_digits("test")
    return [digit_scene(np.random.default_rng(seed), digits).image for seed in range(8)]

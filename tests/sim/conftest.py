"""What the tests of the simulation share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim.history import listen


@pytest.fixture
def raise_violations() -> Iterator[None]:
    """A violation ends the test, even where the engine would log it and retry."""
    log = logging.getLogger("finetune_operator")
    before = log.handlers[:], log.level, log.propagate
    listen()
    yield
    log.handlers[:], log.level, log.propagate = before

"""What the suite tries of the mutants is some of them, and not by a misspelt name none."""

from __future__ import annotations

import pytest

from hack.mutants.faults import FAULTS
from hack.suite.parts import SOME_FAULTS


@pytest.mark.parametrize("word", SOME_FAULTS)
def test_every_word_for_some_mutants_is_in_the_name_of_one(word: str) -> None:
    assert any(word in fault.name for fault in FAULTS)

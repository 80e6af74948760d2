"""What a stage imports before it answers on /progress."""

import subprocess
import sys

import pytest

from tests.trainer.jobs import environment

LIBRARIES = {"numpy", "peft", "rapidfuzz", "regex", "torch", "transformers"}


@pytest.mark.parametrize(
    ("stage", "needed"),
    [("prepare", {"numpy"}), ("train", set()), ("evaluate", {"numpy"}), ("export", set())],
)
def test_a_stage_answers_before_it_imports_libraries(stage: str, needed: set[str]) -> None:
    code = f"import sys; from finetune_trainer import {stage}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert LIBRARIES & set(done.stdout.split()) == needed

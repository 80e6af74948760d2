"""The parts of the suite: what each needs first, and the commands that make it up.

Order matters twice: cheap parts come first so that a typo fails in seconds, and the long builds
(cluster programs, ML environment) are steps of their own so that their time is seen as theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hack.images.uv import uv
from hack.images.venv import ml_python
from hack.suite.environments import test_libraries

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
PYTHON = str(BIN / "python")


@dataclass(frozen=True)
class Step:
    """One command of a part; `command` is built late because it may install what it runs."""

    name: str
    command: Callable[[], list[str]]
    environment: Callable[[], dict[str, str]] = field(default=dict)


@dataclass(frozen=True)
class Part:
    """A named group of steps; the first failing step ends the part."""

    name: str
    steps: tuple[Step, ...]


def _step(name: str, *command: str, **environment: str) -> Step:
    return Step(name, lambda: list(command), lambda: environment)


# A test may wait for its fixture to build images or to train; on a cold machine that takes long.
PATIENT = ("-o", "timeout=2400")


def _pytest(name: str, *arguments: str) -> Step:
    return _step(name, PYTHON, "-m", "pytest", *arguments)


def _trainer_environment() -> dict[str, str]:
    roots = [str(test_libraries()), "operator", "trainer_image", "."]
    return {"PYTHONPATH": os.pathsep.join(roots), "UV": str(uv())}


LINT = Part(
    "lint",
    (
        _step("ruff", str(BIN / "ruff"), "check", "."),
        _step("format", str(BIN / "ruff"), "format", "--check", "."),
        _step("types", str(BIN / "mypy"), "operator", "trainer_image", "hack"),
        _step("imports", str(BIN / "lint-imports"), PYTHONPATH="operator:trainer_image"),
    ),
)
# Two processes share the tests that hold on a busy machine, too.
SHARED = ("-n", "2", "--dist", "loadfile")
UNIT = Part("unit", (_pytest("unit", "tests/unit", *SHARED),))
# Histories of a whole cluster in memory. Each change runs the same ones, enough of them that
# everything happens which must; `make sim` draws others every time, and more of them.
SIM_HISTORIES = ("--seed", "20261121", "--histories", "6000")
SIM = Part(
    "sim",
    (
        _pytest("in-memory API server", "tests/sim"),
        _step("histories", PYTHON, "-m", "tests.sim", *SIM_HISTORIES, PYTHONPATH=".:operator"),
    ),
)
# Words in the names of a few faults; `make mutants` tries all of them.
SOME_FAULTS = ("crash", "owner", "share", "fence", "last thing", "not frozen", "keeps its devices")
# These measure how soon a process of the operator acts.
TIMED = ("tests/api/engine", "tests/api/kserve", "tests/api/test_chart_runs.py")
API = Part(
    "api",
    (
        _step("cluster programs", PYTHON, "-m", "hack.cluster", "binaries"),
        _step("kstatus", PYTHON, "-m", "hack.gitops.kstatus"),
        _pytest("in two processes", "tests/api", *(f"--ignore={path}" for path in TIMED), *SHARED),
        _pytest("one at a time", *TIMED),
        _step("some mutants", PYTHON, "-m", "hack.mutants", *SOME_FAULTS),
    ),
)
ML_ENVIRONMENT = Step("ML environment", lambda: [PYTHON, "-m", "hack.images", "venv"])


def _trainer_tests(name: str, *arguments: str, **environment: str) -> Step:
    """Tests that run with the trainer's own libraries."""
    return Step(
        name,
        lambda: [str(ml_python()), "-m", "pytest", *arguments, *PATIENT],
        lambda: {**_trainer_environment(), **environment},
    )


def _trainer(name: str, *arguments: str) -> Part:
    return Part(name, (ML_ENVIRONMENT, _trainer_tests(name, *arguments)))


def chosen_tests(arguments: list[str]) -> Part:
    """The tests that pytest's `arguments` select, with the libraries that their folder needs."""
    if any("tests/trainer" in argument for argument in arguments):
        return _trainer("one", *arguments)
    return Part("one", (_pytest("one", *arguments, *PATIENT),))


# Tests of the trainer that hold on a busy machine, too.
INDEPENDENT = tuple(
    f"tests/trainer/{name}"
    for name in (
        *("cases", "data", "evaluation", "generation", "methods", "metrics", "objectives"),
        *("rewards", "sources", "strategies", "test_matrix.py"),
        *("test_evaluate.py", "test_janitor.py", "test_prepare.py", "test_prepare_grpo.py"),
        *("test_prepare_adapter.py", "test_prepare_model.py", "test_prepare_preferences.py"),
        "test_prepare_sft.py",
    )
)
TRAINER = Part(
    "trainer",
    (
        ML_ENVIRONMENT,
        _trainer_tests(
            "in two processes",
            *SHARED,
            *INDEPENDENT,
            OMP_NUM_THREADS="1",
        ),
        _trainer_tests(
            "one at a time", "tests/trainer", *(f"--ignore={path}" for path in INDEPENDENT)
        ),
    ),
)
# All of the combinations and architectures of which the trainer's tests take a few; `make matrix`.
MATRIX = _trainer(
    "matrix",
    "tests/trainer/test_matrix.py",
    "tests/trainer/cases/test_image_models.py",
    "tests/trainer/methods/test_architectures.py",
    "-s",
)
# Twenty of them; the trainer's tests run three. `make kills`.
KILLS = _trainer(
    "kills", "tests/trainer/checkpointing/test_kills.py", "-k", "killed_anywhere", "-s"
)
# Thousands of damaged files; the trainer's tests read a few hundred. `make fuzz`.
FUZZ_FILES = _trainer("fuzz-files", "tests/trainer/data/test_fuzz_files.py", "-s")
IMAGES = Part("images", (_pytest("images", "tests/images", *PATIENT),))
CLUSTER = Part("cluster", (_pytest("cluster", "tests/cluster", *PATIENT),))
E2E = Part("e2e", (_pytest("e2e", "tests/e2e", "-s", "-m", "not long", *PATIENT),))
# Every fault on the real cluster; the end-to-end tests play a few of them. `make chaos`.
CHAOS = Part("chaos", (_pytest("chaos", "tests/e2e/chaos", "-s", *PATIENT),))
# Breaks copies of the operator in about seventy ways. `make mutants`.
MUTANTS = Part("mutants", (_step("mutants", PYTHON, "-m", "hack.mutants"),))

PARTS = (LINT, UNIT, SIM, API, TRAINER, IMAGES, CLUSTER, E2E)
ON_DEMAND = (MUTANTS, MATRIX, KILLS, FUZZ_FILES, CHAOS)
"""Too long for every run; only by name."""

"""The state that Flux computes for an object: a small program around its own libraries.

`python -m hack.gitops.kstatus` builds it (once, into the project's cache) and prints its path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hack.cluster.binaries import Program, built
from hack.cluster.errors import ClusterError
from hack.cluster.process import run

SOURCE = Program("kstatus", Path(__file__).resolve().parent / "gomod/kstatus", ".")


def build_program() -> Path:
    """The path of the program, built if need be."""
    return built(SOURCE, "kstatus")


def compute_statuses(
    objects: Sequence[Mapping[str, Any]], health_check_exprs: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """For each object its status by kstatus, and by Flux with these `healthCheckExprs`."""
    question = {"objects": objects, "healthCheckExprs": health_check_exprs}
    answers: list[dict[str, str]] = json.loads(run([build_program()], stdin=json.dumps(question)))
    return answers


if __name__ == "__main__":
    try:
        print(build_program())
    except ClusterError as error:
        sys.exit(str(error))

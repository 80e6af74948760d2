"""`python -m hack.suite [PART ...]`: run the parts, stream their output, print a table of times.

`python -m hack.suite one PYTEST-ARGUMENT ...` runs single tests with the libraries that they need.

Every part runs even when an earlier one failed, so that one run shows everything that is wrong.
Exit status 1 when a part failed. The closing lines report what was skipped and why, and count the
parts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.suite.parts import ON_DEMAND, PARTS, ROOT, Part, Step, chosen_tests

# Where tests/conftest.py writes the reason of every skipped test.
SKIPPED = "FINETUNE_SUITE_SKIPPED"


@dataclass(frozen=True)
class Timed:
    """One step, how long it took, and whether it passed."""

    part: str
    step: str
    seconds: float
    passed: bool


def run_step(part: str, step: Step) -> Timed:
    """Run one step with its output on ours. A failed installation counts as a failed step."""
    print(f"\n=== {part}: {step.name}", flush=True)
    started = time.monotonic()
    try:
        environment = {**os.environ, **step.environment()}
        subprocess.run(
            step.command(), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=True
        )
    except (ClusterError, SystemExit, OSError, subprocess.CalledProcessError) as error:
        print(f"{part}: {step.name}: {error}", file=sys.stderr)
        return Timed(part, step.name, time.monotonic() - started, False)
    return Timed(part, step.name, time.monotonic() - started, True)


def run_part(part: Part) -> list[Timed]:
    """Run the steps of a part until one fails."""
    done: list[Timed] = []
    for step in part.steps:
        done.append(run_step(part.name, step))
        if not done[-1].passed:
            break
    return done


def main(names: list[str]) -> int:
    known = {part.name: part for part in (*PARTS, *ON_DEMAND)}
    if names[:1] == ["one"]:
        known, names = {"one": chosen_tests(names[1:])}, ["one"]
    usual = [part.name for part in PARTS]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown part {unknown[0]}; known: {' '.join(known)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="suite-") as folder:
        skipped = Path(folder) / "skipped"
        skipped.touch()
        os.environ[SKIPPED] = str(skipped)
        results = [timed for name in (names or usual) for timed in run_part(known[name])]
        reasons = Counter(skipped.read_text().splitlines())
    return report(results, reasons)


def report(results: list[Timed], reasons: Counter[str]) -> int:
    """Print the table of times and what was skipped; the exit status."""
    print("\npart        step                 seconds  result")
    for timed in results:
        verdict = "ok" if timed.passed else "FAILED"
        print(f"{timed.part:<11} {timed.step:<20} {timed.seconds:7.1f}  {verdict}")
    print(f"{'total':<32} {sum(timed.seconds for timed in results):7.1f}")
    for reason, count in reasons.items():
        print(f"skipped: {count} tests, because {reason}")
    failed = {timed.part for timed in results if not timed.passed}
    ran = {timed.part for timed in results}
    print(f"parts: {len(ran) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

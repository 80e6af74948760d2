"""`python -m hack.mutants [WORD ...]`: break a copy of the operator, one fault at a time.

A fault counts as caught when its suite, which passes on the unbroken copy, fails on the broken one.
A fault whose text is not there exactly once is an error. Exit status 1 unless all were caught.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from hack.mutants.fault import Fault
from hack.mutants.faults import FAULTS

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = (".*", "__pycache__")
"""What no test reads: git's folder, virtual environments, caches."""
WORKERS = 2
SECONDS = 600
FAILED = 1
"""Exit status of a suite with failing tests; any other means that it could not run."""


def main(words: list[str]) -> int:
    """Try every fault whose name holds one of the words; all without words. The exit status."""
    chosen = [f for f in FAULTS if not words or any(word in f.name for word in words)]
    if unknown := [word for word in words if not any(word in f.name for f in FAULTS)]:
        print(f"no fault has in its name: {', '.join(unknown)}", file=sys.stderr)
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(WORKERS):
            copies.put(copied(Path(folder) / str(number)))
        if problem := unfit(chosen, copies):
            print(problem, file=sys.stderr)
            return 1
        with ThreadPoolExecutor(WORKERS) as pool:
            caught = list(pool.map(lambda fault: tried(fault, copies), chosen))
    print(f"mutants: {sum(caught)}/{len(chosen)} caught, {time.monotonic() - started:.0f} s")
    return 0 if all(caught) else 1


def copied(to: Path) -> Path:
    """Every file of the checkout that a test may read."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return to


def unfit(faults: list[Fault], copies: SimpleQueue[Path]) -> str | None:
    """Why a fault proves nothing: it does not apply, or its suite fails anyway."""
    copy = copies.get()
    copies.put(copy)
    for fault in faults:
        count = source_of(fault, copy).read_text().count(fault.right)
        if count != 1:
            return f"{fault.name}: its text occurs {count} times in {fault.file}"
    for suite in dict.fromkeys(fault.suite for fault in faults):
        status, output = run(suite, copy)
        if status != 0:
            return f"{' '.join(suite)} fails on the unbroken code:\n{output}"
    return None


def tried(fault: Fault, copies: SimpleQueue[Path]) -> bool:
    """Whether the tests notice a fault."""
    copy = copies.get()
    path = source_of(fault, copy)
    whole = path.read_text()
    try:
        path.write_text(whole.replace(fault.right, fault.wrong))
        status, output = run(fault.suite, copy)
    finally:
        path.write_text(whole)
        copies.put(copy)
    if status not in (0, FAILED):
        print(f"{fault.name}: the suite could not run:\n{output}", file=sys.stderr, flush=True)
    print(f"{'caught' if status == FAILED else 'SURVIVED'}: {fault.name}", flush=True)
    return status == FAILED


def source_of(fault: Fault, copy: Path) -> Path:
    """The file that a fault is in."""
    return copy / "operator" / "finetune_operator" / fault.file


def run(suite: tuple[str, ...], copy: Path) -> tuple[int, str]:
    """Exit status of a suite and the end of its output; 124 when it hangs."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{copy / 'operator'}:{copy / 'trainer_image'}:{copy}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, *suite],
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end after {SECONDS} s"
    return done.returncode, (done.stdout + done.stderr)[-2000:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

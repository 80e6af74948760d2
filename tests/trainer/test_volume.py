"""What prepare finds out about the workspace, and how a full one is told."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_api.run import ExitCode
from finetune_trainer.stage import failure_of
from finetune_trainer.volume import MOST_SECONDS, PIECE, measure

from tests.trainer.jobs import environment

SMALL = 2 * 2**20
"""Bytes of the volume of a test."""
WRITERS = {
    "a file": "open(f'{there}/file', 'wb').write(b'0' * 2**23)",
    "numpy": "import numpy; numpy.save(f'{there}/file.npy', numpy.zeros(2**20))",
    "safetensors": "import numpy; from safetensors.numpy import save_file; "
    "save_file({'a': numpy.zeros(2**20)}, f'{there}/file.safetensors')",
}


def on_small_volume(folder: Path, code: str) -> str:
    """What Python prints with `there` on a volume of its own, which no other process sees."""
    root = [] if os.getuid() == 0 else ["--map-root-user"]
    mount = f'mount -t tmpfs -o size={SMALL} tmpfs "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", *root, "sh", "-c", mount, "-", folder, sys.executable, code],
        env=environment(),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_volume_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    facts = measure(tmp_path)
    assert facts.free_bytes > 0
    assert facts.write_bytes_per_second > 0
    assert not list(tmp_path.iterdir())


def test_a_slow_volume_is_not_measured_for_long(tmp_path: Path) -> None:
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return (asked - 1) * MOST_SECONDS

    assert measure(tmp_path, clock).write_bytes_per_second == PIECE / MOST_SECONDS


def test_a_small_volume_is_not_filled_by_measuring_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from finetune_trainer.volume import measure; "
        "print(measure(Path(sys.argv[1])).free_bytes)"
    )
    assert int(on_small_volume(tmp_path, code)) == SMALL


def test_steps_that_a_full_volume_has_no_room_for_are_written_later(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from finetune_trainer.pace import History\n"
        "there = Path(sys.argv[1]); history = History(there / 'train-1.jsonl', rank=0)\n"
        "history.add(step=0)\n"
        "try:\n    (there / 'filler').open('wb', buffering=0).write(b'0' * 2**23)\n"
        "except OSError:\n    pass\n"
        "for step in range(1, 200):\n    history.add(step=step)\n"
        "before = (there / 'train-1.jsonl').read_text().count('\\n')\n"
        "(there / 'filler').unlink(); history.add(step=200)\n"
        "print(before, (there / 'train-1.jsonl').read_text())\n"
    )
    before, told = on_small_volume(tmp_path, code).split(" ", 1)
    assert int(before) < 200
    assert [json.loads(line)["step"] for line in told.splitlines() if line] == list(range(201))


@pytest.mark.parametrize("writer", list(WRITERS))
def test_a_full_volume_is_told_in_words_whoever_finds_it(tmp_path: Path, writer: str) -> None:
    code = (
        "import sys; there = sys.argv[1]\n"
        "from finetune_trainer.stage import failure_of\n"
        f"try:\n    {WRITERS[writer]}\n"
        "except Exception as error:\n"
        "    failure, code = failure_of(error)\n"
        "    print(failure.reason, int(code), failure.message)\n"
    )
    told = on_small_volume(tmp_path, code)
    assert told.startswith(f"NoSpaceLeft {int(ExitCode.RETRYABLE)} The volume is full"), told


def test_what_is_free_is_told_with_the_file(tmp_path: Path) -> None:
    error = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(tmp_path / "not" / "there"))
    failure, _ = failure_of(error)
    assert failure.file == str(tmp_path / "not" / "there")
    assert " are free" in failure.message
    assert failure_of(OSError(errno.EIO, "broken"))[0].reason == "InternalError"

"""Facts about the workspace that prepare measures, and the failures of a full volume."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_api.run import ExitCode
from finetune_trainer.runtime.errors import classify_error
from finetune_trainer.runtime.free_space import free_bytes_of_nearest
from finetune_trainer.sources.volume_probe import CHUNK_BYTES, MAX_SECONDS, measure_volume
from finetune_trainer.training.worker import root_cause

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
    """Output of a Python process with the folder `there` on a small volume of its own."""
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
    facts = measure_volume(tmp_path)
    assert facts.free_bytes > 0
    assert facts.write_bytes_per_second > 0
    assert not list(tmp_path.iterdir())


def test_a_slow_volume_is_not_measured_for_long(tmp_path: Path) -> None:
    reads = 0

    def clock() -> float:
        nonlocal reads
        reads += 1
        return (reads - 1) * MAX_SECONDS

    assert measure_volume(tmp_path, clock).write_bytes_per_second == CHUNK_BYTES / MAX_SECONDS


def test_measuring_does_not_fill_a_small_volume(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from finetune_trainer.sources.volume_probe import measure_volume\n"
        "print(measure_volume(Path(sys.argv[1])).free_bytes)"
    )
    assert int(on_small_volume(tmp_path, code)) == SMALL


def test_steps_that_do_not_fit_on_a_full_volume_are_written_later(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from finetune_trainer.training.throughput import History\n"
        "there = Path(sys.argv[1]); history = History(there / 'train-1.jsonl', rank=0)\n"
        "history.append(step=0)\n"
        "try:\n    (there / 'filler').open('wb', buffering=0).write(b'0' * 2**23)\n"
        "except OSError:\n    pass\n"
        "for step in range(1, 200):\n    history.append(step=step)\n"
        "before = (there / 'train-1.jsonl').read_text().count('\\n')\n"
        "(there / 'filler').unlink(); history.append(step=200)\n"
        "print(before, (there / 'train-1.jsonl').read_text())\n"
    )
    before, history = on_small_volume(tmp_path, code).split(" ", 1)
    assert int(before) < 200
    assert [json.loads(line)["step"] for line in history.splitlines() if line] == list(range(201))


@pytest.mark.parametrize("writer", list(WRITERS))
def test_a_full_volume_is_reported_whichever_library_finds_it(tmp_path: Path, writer: str) -> None:
    code = (
        "import sys; there = sys.argv[1]\n"
        "from finetune_trainer.runtime.stage import classify_error\n"
        f"try:\n    {WRITERS[writer]}\n"
        "except Exception as error:\n"
        "    failure, code = classify_error(error)\n"
        "    print(failure.reason, int(code), failure.message)\n"
    )
    output = on_small_volume(tmp_path, code)
    expected = f"NoSpaceLeft {int(ExitCode.RETRYABLE)} The volume is full"
    assert output.startswith(expected), output


def test_failure_names_the_file_and_the_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    error = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(tmp_path / "not" / "there"))
    failure, _ = classify_error(error)
    assert failure.file == str(tmp_path / "not" / "there")
    assert " are free" in failure.message
    assert "workspace" in (failure.remedy or "")


def fail_as_stale(folder: Path) -> None:
    """In place of `shutil.disk_usage`, on a volume whose server has lost the folder."""
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))


def test_a_volume_that_does_not_answer_is_not_measured_by_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage

    def fail_below_tmp_path(folder: Path) -> object:
        return fail_as_stale(folder) if folder == tmp_path else usage(folder)

    monkeypatch.setattr(shutil, "disk_usage", fail_below_tmp_path)
    with pytest.raises(OSError, match="Stale") as raised:
        measure_volume(tmp_path)
    assert classify_error(raised.value)[0].reason == "VolumeUnavailable"
    assert free_bytes_of_nearest(tmp_path / "not" / "there") == usage(tmp_path.parent).free


def test_a_full_volume_is_reported_although_no_volume_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", fail_as_stale)
    assert free_bytes_of_nearest(tmp_path) is None
    for place in ((), (str(tmp_path / "file"),)):
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *place)
        failure, code = classify_error(error)
        assert (failure.reason, code) == ("NoSpaceLeft", ExitCode.RETRYABLE)
        assert "are free" not in failure.message


def test_a_full_disk_of_the_node_is_not_reported_as_the_workspace(tmp_path: Path) -> None:
    """The pod's /tmp; Python then says that there is no usable temporary directory."""
    code = (
        "import os, sys, tempfile\n"
        "there = sys.argv[1]; os.environ['TMPDIR'] = there; tempfile.tempdir = None\n"
        "from finetune_trainer.runtime.stage import classify_error\n"
        "def fill():\n    open(f'{there}/file', 'wb', buffering=0).write(b'0' * 2**23)\n"
        "    open(f'{there}/more', 'wb').write(b'0' * 2**23)\n"
        "try:\n    fill()\n"
        "except OSError as error:\n"
        "    print(classify_error(error)[0].to_wire())\n"
        "os.chdir(there); tempfile._candidate_tempdir_list = lambda: [there]\n"
        "try:\n    tempfile.mkdtemp()\n"
        "except OSError as error:\n"
        "    print(classify_error(error)[0].to_wire())\n"
    )
    lines = on_small_volume(tmp_path, code).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "'NoSpaceLeft'" in line
        assert "/tmp" in line
        assert "workspace" not in line


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm/ranks-1/.rank-00000.json.7"),
        RuntimeError(
            "NCCL error in: NCCLUtils.cpp:94, unhandled system error. Last error:\nError while "
            "creating shared memory segment /dev/shm/nccl-Tq3 (size 9637888), error: No space left "
            "on device (28)"
        ),
    ],
)
def test_full_shared_memory_is_reported_neither_as_the_workspace_nor_as_a_lost_peer(
    error: Exception,
) -> None:
    failure, code = classify_error(root_cause(error, None))
    assert (failure.reason, code) == ("NoSpaceLeft", ExitCode.RETRYABLE)
    assert "shared memory" in failure.message
    assert "sharedMemory" in (failure.remedy or "")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EROFS, os.strerror(errno.EROFS), "/workspace/job/claims"),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
        OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "/workspace/job"),
        RuntimeError("Error while serializing: I/O error: Read-only file system (os error 30)"),
    ],
)
def test_an_error_of_a_volume_is_reported_as_volume_unavailable(error: Exception) -> None:
    failure, code = classify_error(error)
    assert (failure.reason, code) == ("VolumeUnavailable", ExitCode.RETRYABLE)
    assert failure.remedy
    assert classify_error(OSError(errno.ENOTCONN, "a socket"))[0].reason == "InternalError"


def test_ranks_report_although_the_disk_of_the_node_is_full(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "there = sys.argv[1]; os.environ['TMPDIR'] = there\n"
        "try:\n    open(f'{there}/file', 'wb', buffering=0).write(b'0' * 2**23)\n"
        "    open(f'{there}/more', 'wb').write(b'0' * 2**23)\n"
        "except OSError:\n    pass\n"
        "from pathlib import Path\n"
        "from finetune_trainer.runtime.telemetry import RankFile, make_rank_folder\n"
        "from finetune_trainer.runtime.telemetry import read_rank_files\n"
        "with make_rank_folder() as name:\n    folder = Path(name)\n"
        "    RankFile(folder, 0).write({'rank': 0, 'step': 1})\n"
        "    print(read_rank_files(folder))\n"
    )
    assert "'step': 1" in on_small_volume(tmp_path, code)

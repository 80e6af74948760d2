"""Errors of the operating system as failures: which volume is full or unavailable."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from finetune_api.protocol import ExitCode
from finetune_trainer.runtime.errors import classify_error
from finetune_trainer.runtime.free_space import free_bytes_of_nearest
from finetune_trainer.training.worker import root_cause

from tests.trainer.volumes import fail_as_stale, on_small_volume

WRITERS = {
    "a file": "open(f'{there}/file', 'wb').write(b'0' * 2**23)",
    "numpy": "import numpy; numpy.save(f'{there}/file.npy', numpy.zeros(2**20))",
    "safetensors": "import numpy; from safetensors.numpy import save_file; "
    "save_file({'a': numpy.zeros(2**20)}, f'{there}/file.safetensors')",
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_a_full_volume_is_reported_whichever_library_finds_it(tmp_path: Path, writer: str) -> None:
    code = (
        "import sys; there = sys.argv[1]\n"
        "from finetune_trainer.runtime.errors import classify_error\n"
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


def test_a_full_disk_of_the_node_is_not_reported_as_the_workspace(tmp_path: Path) -> None:
    """The pod's /tmp; Python then says that there is no usable temporary directory."""
    code = (
        "import os, sys, tempfile\n"
        "there = sys.argv[1]; os.environ['TMPDIR'] = there; tempfile.tempdir = None\n"
        "from finetune_trainer.runtime.errors import classify_error\n"
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

"""The janitor removes what it is told, if it has the right shape, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_api.run import ExitCode
from finetune_trainer.janitor import Refused, remove, run

UID = "0b0e7c0e-1111-4222-8333-444455556666"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for folder in (f"jobs/{UID}/data", "artifacts/support-bot-0b0e7c0e", "models/abc", "jobs/x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(b"12345")
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_folders_of_a_job_are_removed_and_counted(workspace: Path) -> None:
    assert remove(workspace, f"jobs/{UID}") == 5
    assert remove(workspace, "artifacts/support-bot-0b0e7c0e") == 5
    assert names(workspace / "jobs") == {"x"}
    assert names(workspace / "artifacts") == set()
    assert names(workspace / "models") == {"abc"}


def test_folder_that_is_gone_is_fine(workspace: Path) -> None:
    assert remove(workspace, f"jobs/{UID}") == 5
    assert remove(workspace, f"jobs/{UID}") == 0


@pytest.mark.parametrize(
    "target",
    [
        "",
        ".",
        "jobs",
        "jobs/",
        "jobs/x",
        f"/jobs/{UID}",
        f"jobs/../jobs/{UID}",
        f"jobs/{UID}/..",
        f"jobs/{UID}/data",
        f"jobs/{UID.upper()}",
        f"models/{UID}",
        f"jobs/{UID}\n",
        "artifacts/..-0b0e7c0e",
        "artifacts/support-bot",
        "artifacts/a/b-0b0e7c0e",
    ],
)
def test_other_names_are_refused(workspace: Path, target: str) -> None:
    before = sorted(workspace.rglob("*"))
    with pytest.raises(Refused):
        remove(workspace, target)
    assert sorted(workspace.rglob("*")) == before


def test_links_are_refused_and_not_followed(workspace: Path, tmp_path: Path) -> None:
    precious = workspace / "models" / "abc"
    (workspace / "jobs" / UID / "link").symlink_to(precious)
    other = UID.replace("0b0e", "ffff")
    (workspace / "jobs" / other).symlink_to(precious)
    with pytest.raises(Refused):
        remove(workspace, f"jobs/{other}")
    remove(workspace, f"jobs/{UID}")
    assert (precious / "file").is_file()


def test_one_refusal_does_not_keep_the_others(workspace: Path) -> None:
    said: list[str] = []
    assert run(workspace, ["models/abc", f"jobs/{UID}"], said.append) == ExitCode.USER_ERROR
    assert not (workspace / "jobs" / UID).exists()
    assert said[0].startswith("refused")
    assert said[1] == f"removed jobs/{UID}: 5 bytes freed"


def test_command_line_takes_arguments_and_environment(workspace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer.janitor", "--root", workspace, f"jobs/{UID}"],
        env={
            **os.environ,
            "FINETUNE_JANITOR_REMOVE": "artifacts/support-bot-0b0e7c0e",
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"removed jobs/{UID}: 5 bytes freed",
        "removed artifacts/support-bot-0b0e7c0e: 5 bytes freed",
    ]

"""How an artifact is published, and how long it is retained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_api.run_config import RunConfig
from finetune_trainer.checkpointing.artifact import find_artifact, publish_artifact
from finetune_trainer.checkpointing.checkpoint_folder import hash_files
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.sources.artifact_folder import MANIFEST, RETENTION_FILE, read_retention


def publish(root: Path, number: int, retention: str | None) -> Path:
    """Publish an artifact of one file; its folder."""
    target = root / "artifact"
    target.mkdir(exist_ok=True)
    with Attempt(root / "job", number, "export", home=target) as attempt:
        folder = attempt.scratch / "artifact"
        folder.mkdir()
        (folder / "model").write_text("weights")
        publish_artifact(attempt, folder, target, b"manifest", retention)
    return target


@pytest.mark.parametrize("retention", ["WhileReferenced", "720h"])
def test_the_retention_is_stored_with_the_artifact(tmp_path: Path, retention: str) -> None:
    target = publish(tmp_path, 1, retention)
    assert read_retention(target) == retention
    assert (target / MANIFEST).read_bytes() == b"manifest"


def test_an_artifact_without_a_file_is_retained(tmp_path: Path) -> None:
    publish(tmp_path, 1, "1h")
    target = publish(tmp_path, 2, None)
    assert read_retention(target) == "Always"
    assert not (target / RETENTION_FILE).exists(), "of an attempt that was replaced"


def test_a_folder_that_export_has_not_completed_is_not_retained(tmp_path: Path) -> None:
    target = publish(tmp_path, 1, "Always")
    (target / MANIFEST).unlink()
    assert read_retention(target) == "WhileReferenced"


def test_an_artifact_whose_manifest_cannot_be_examined_is_retained(tmp_path: Path) -> None:
    loop = tmp_path / "artifact"
    loop.symlink_to(loop)
    assert read_retention(loop) == "Always"


def test_the_reported_retention_is_that_of_the_attempt_that_published(tmp_path: Path) -> None:
    """The default of the installation may change before a later attempt finds the artifact."""
    job = {"name": "tiny", "namespace": "default", "uid": "0000"}
    files = {"model": hash_files(publish(tmp_path, 1, "1h"))["model"]}
    (tmp_path / "artifact" / MANIFEST).write_text(json.dumps({"files": files, "job": job}))
    later = {"job": job, "stage": "export", "attempt": 2, "spec": {}, "artifactUri": "pvc://a/b"}
    found = find_artifact(RunConfig.model_validate(later), tmp_path / "artifact")
    assert found is not None
    assert found.retention == "1h"

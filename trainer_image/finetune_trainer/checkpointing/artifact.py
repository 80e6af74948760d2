"""The artifact of a job: the exported folder, its manifest, and how it is published and checked.

The folder is complete once manifest.json is in it. The manifest holds the SHA-256 of every other
file, and its own digest identifies the artifact. How long the artifact is retained is in a hidden
file, which is not part of it.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

from finetune_api.facts import AdapterFacts, ArtifactRef, ModelFacts
from finetune_api.finetunejob import ModelAddress
from finetune_api.run_config import RunConfig

from finetune_trainer import __version__
from finetune_trainer.checkpointing.checkpoint_folder import hash_files
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.sources import Address
from finetune_trainer.sources.artifact_folder import MANIFEST, RETENTION_FILE, read_retention

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "safetensors", "tokenizers")


def find_artifact(run: RunConfig, target: Path) -> ArtifactRef | None:
    """The artifact of this job, if it exists and every file agrees with its manifest.

    An earlier attempt may have published it before it was replaced, and a server may read it.
    """
    assert run.artifact_uri is not None
    try:
        content = (target / MANIFEST).read_bytes()
        manifest = json.loads(content)
    except (FileNotFoundError, ValueError):
        return None
    # Scratch folders of attempts and the retention have hidden names.
    published = {path.name for path in target.iterdir() if not path.name.startswith(".")}
    published.discard(MANIFEST)
    hashes = hash_files(target).items()
    files = {path: facts for path, facts in hashes if path.split("/")[0] in published}
    if manifest.get("files") != files or manifest.get("job") != run.job.to_wire():
        return None
    return ArtifactRef(
        uri=run.artifact_uri,
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
        bytes=sum(int(facts["size"]) for facts in files.values()) + len(content),
        # Another attempt may have published it, when the installation had another default.
        retention=read_retention(target),
    )


def publish_artifact(
    attempt: Attempt, folder: Path, target: Path, manifest: bytes, retention: str | None = None
) -> None:
    """Move the files from `folder` to `target`, the manifest last.

    The files of an earlier attempt are removed first, and its manifest before the others, so that
    they never seem complete. `target` itself is a mount point that another user may own, so its
    mode is left alone.
    """
    old = [path for path in target.iterdir() if path != attempt.scratch]
    for path in sorted(old, key=lambda path: path.name != MANIFEST):
        attempt.remove_published(path)
    with attempt.fencing_errors():
        new = sorted(folder.iterdir())
    for path in new:
        attempt.publish(path, target / path.name)
    if retention is not None:
        attempt.publish_file(target / RETENTION_FILE, retention.encode())
    attempt.publish_file(target / MANIFEST, manifest)


def verify_weights(folder: Path, model: Any) -> None:
    """Check that the headers of the written files have as many parameters as the model.

    The number and not the names, because some architectures are saved under other names than they
    have in memory. Raises RetryableError ArtifactIncomplete.
    """
    from safetensors import safe_open

    written = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                written += prod(tensors.get_slice(name).get_shape())
    expected = sum(weight.numel() for weight in _saved_weights(model))
    if written < expected:
        raise RetryableError(
            "ArtifactIncomplete",
            f"The export holds {written} of {expected} weights.",
            "Check the workspace's storage.",
            file=str(folder),
        )


def _saved_weights(model: Any) -> Iterator[Any]:
    """The weights that save_pretrained writes: all, or of a prefix-tuned model the prefix alone."""
    if not hasattr(model, "peft_config"):
        return iter(model.parameters())
    from peft import get_peft_model_state_dict

    return iter(get_peft_model_state_dict(model).values())


def _lineage(
    source: ModelAddress | None, facts: ModelFacts | AdapterFacts | None
) -> dict[str, Any] | None:
    """Address and revision of a source; None where the job has no such source."""
    if source is None:
        return None
    # Without the signature of a presigned address: the artifact is read by more people.
    uri = Address("model", source.uri).public_uri
    return {"uri": uri, "revision": facts.revision if facts else None}


def make_manifest(run: RunConfig, files: dict[str, Any]) -> dict[str, Any]:
    """The content of manifest.json: the files with their digests, and how they were made."""
    spec, facts = run.spec, run.model
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "version": 1,
        "job": run.job.to_wire(),
        "base": _lineage(spec.model, facts),
        "adapter": _lineage(spec.model.adapter, facts and facts.adapter),
        "method": spec.method.to_wire(),
        "data": run.data.to_wire() if run.data else None,
        "evaluation": run.evaluation.to_wire() if run.evaluation else None,
        "versions": {"finetune-trainer": __version__} | versions,
        "files": files,
    }

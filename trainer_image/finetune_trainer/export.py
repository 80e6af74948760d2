"""The export stage: the tuned model as one folder that any server can load.

A retry that finds a complete artifact keeps it, because a server may read it already; an incomplete
one is written again. All files are readable by other users, because the model server runs under
another uid.
"""

from finetune_trainer.runtime.sigterm import block_sigterm

if __name__ == "__main__":
    block_sigterm()

import json
import shutil
from pathlib import Path
from typing import Any

from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult

from finetune_trainer.checkpointing.artifact import (
    find_artifact,
    make_manifest,
    publish_artifact,
    verify_weights,
)
from finetune_trainer.checkpointing.checkpoint_folder import hash_files
from finetune_trainer.evaluation.model_card import render_model_card
from finetune_trainer.evaluation.report import EVALUATION_REPORT
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.runtime.fsync import fsync_tree
from finetune_trainer.runtime.stage import run_stage
from finetune_trainer.runtime.telemetry import Report
from finetune_trainer.sources import Address
from finetune_trainer.sources.model_files import PROCESSOR_FILES


def export(run: RunConfig, report: Report) -> StageResult:
    """Merge, write, check and publish; an artifact that is complete already stays as it is."""
    report.update("merging", step=0, total_steps=3)
    target = Path(run.paths.artifact)
    with Attempt(Path(run.paths.job), run.attempt, "export", home=target) as attempt:
        artifact = find_artifact(run, target)
        if artifact is None:
            folder = attempt.scratch / "artifact"
            manifest = write_files(run, report, folder)
            report.update("publishing", step=2)
            publish_artifact(attempt, folder, target, manifest, run.artifact_retention)
            artifact = find_artifact(run, target)
    if artifact is None:
        raise RetryableError(
            "ArtifactChanged",
            "The files of the artifact are not those that were written.",
            "Check the workspace's storage.",
            file=str(target),
        )
    report.update("done", step=3)
    return StageResult(stage="export", attempt=run.attempt, outcome="Succeeded", artifact=artifact)


def write_files(run: RunConfig, report: Report, folder: Path) -> bytes:
    """Write and sync the artifact's files in `folder`; returns the manifest, which is not there."""
    from finetune_trainer.data.tokenizer import load_job_tokenizer
    from finetune_trainer.evaluation.merge import base_folder, load_tuned_model
    from finetune_trainer.generation.greedy import find_end_tokens
    from finetune_trainer.methods import require_decided, saved_dtype

    folder.mkdir()
    model = load_tuned_model(run, saved_dtype(base_folder(run)))
    report.update("writing", step=1)
    tokenizer = load_job_tokenizer(run)
    model.config.get_text_config().use_cache = True
    # The code that it names is not in the artifact, and nothing here has run it.
    vars(model.config).pop("auto_map", None)
    if model.can_generate():
        # Servers stop at these tokens; the list of a base model lacks the one that ends a turn.
        model.generation_config.eos_token_id = find_end_tokens(model, tokenizer)
    model.save_pretrained(folder, max_shard_size="5GB")
    set_base_model(folder / "adapter_config.json", run)
    tokenizer.save_pretrained(folder)
    copy_processor_files(base_folder(run), folder, tokenizer.chat_template)
    (folder / "README.md").write_text(render_model_card(require_decided(run)))
    # The report is copied, because the job's folder is removed with the job.
    evaluation_report = Path(run.paths.job) / EVALUATION_REPORT
    if evaluation_report.exists():
        shutil.copyfile(evaluation_report, folder / evaluation_report.name)
    verify_weights(folder, model)
    fsync_tree(folder)
    return json.dumps(make_manifest(run, hash_files(folder)), indent=1, sort_keys=True).encode()


def copy_processor_files(base: Path, folder: Path, template: Any) -> None:
    """Copy the files of the base's processor; their chat template becomes the tokenizer's."""
    for name in PROCESSOR_FILES:
        if not (base / name).is_file():
            continue
        settings = json.loads((base / name).read_bytes())
        if "chat_template" in settings:
            settings["chat_template"] = template
        (folder / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def set_base_model(adapter_config: Path, run: RunConfig) -> None:
    """Name the base of an exported prefix by the user's address, not by a folder of this pod."""
    if adapter_config.is_file():
        address = run.spec.model
        config = json.loads(adapter_config.read_text())
        uri = Address("model", address.uri).public_uri
        config["base_model_name_or_path"] = uri.removeprefix("hf://")
        config["revision"] = address.revision
        adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True))


if __name__ == "__main__":
    raise SystemExit(run_stage("export", export))

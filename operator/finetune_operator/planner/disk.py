"""What training leaves on disk, in bytes, and whether the workspace has enough free space for it.

A checkpoint holds the parameters that the optimizer updates, in fp32, and the optimizer states; it
never holds frozen weights. A new checkpoint is complete before the trainer removes the oldest.
"""

from finetune_api.facts import ModelFacts, WorkspaceFacts
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec

from finetune_operator.planner.memory import ADALORA_IMPORTANCE_BYTES, CHECKPOINT_BYTES
from finetune_operator.planner.parameters import trainable_parameters
from finetune_operator.planner.quantity import format_bytes


def checkpoint_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """One checkpoint: fp32 weights and optimizer states, of the adapters or of the whole model."""
    per_parameter = CHECKPOINT_BYTES[spec.training.optimizer]
    if spec.method.type == "AdaLoRA":
        per_parameter += ADALORA_IMPORTANCE_BYTES
    return per_parameter * trainable_parameters(model, spec.method)


def count_checkpoints(spec: FineTuneJobSpec) -> int:
    """Checkpoints on disk at the same time: those that the job keeps, the one that the trainer
    writes, and the best one with early stopping."""
    best = 1 if spec.training.early_stopping else 0
    return spec.training.checkpoint.keep_last + 1 + best


def output_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """What train leaves for evaluate and export: a model in its base's format, or adapters."""
    if spec.method.type == "Full":
        return model.weight_bytes
    # A folder of adapters holds the copy of a tied weight under both of its names.
    untied = model.model_copy(update={"has_tied_embeddings": False})
    return 4 * trainable_parameters(untied, spec.method)


def artifact_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """What export writes: a merged model is as large as its base; a prefix is exported alone."""
    return output_bytes(spec, model) if spec.method.type == "Prefix" else model.weight_bytes


def peak_disk_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """The most that a job has on disk at the same time after prepare."""
    checkpoints = count_checkpoints(spec) * checkpoint_bytes(spec, model)
    return checkpoints + output_bytes(spec, model) + artifact_bytes(spec, model)


def check_free_space(
    spec: FineTuneJobSpec, model: ModelFacts, workspace: WorkspaceFacts | None, claim: str
) -> Failure | None:
    """WorkspaceTooSmall if prepare measured less free space than the job will write."""
    need = peak_disk_bytes(spec, model)
    if workspace is None or need <= workspace.free_bytes:
        return None
    count, each = count_checkpoints(spec), checkpoint_bytes(spec, model)
    missing = need - workspace.free_bytes
    return Failure(
        stage="train",
        reason="WorkspaceTooSmall",
        message=(
            f"training writes {format_bytes(need)}: {count} checkpoints of {format_bytes(each)}, "
            f"trained weights of {format_bytes(output_bytes(spec, model))} and an artifact of "
            f"{format_bytes(artifact_bytes(spec, model))}; claim {claim} has "
            f"{format_bytes(workspace.free_bytes)} free"
        ),
        remedy="; or ".join(_propose_remedies(spec, model, missing, claim)),
    )


def _propose_remedies(
    spec: FineTuneJobSpec, model: ModelFacts, missing: int, claim: str
) -> list[str]:
    ways = [
        f"enlarge claim {claim} by {format_bytes(missing)}",
        "delete FineTuneJobs, and release artifacts, that are no longer needed",
    ]
    fewer = -(-missing // checkpoint_bytes(spec, model))
    keep = spec.training.checkpoint.keep_last - fewer
    if keep >= 1:
        ways.append(f"set training.checkpoint.keepLast to {keep}")
    return ways

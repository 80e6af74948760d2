"""What training leaves on disk, in bytes, and whether the workspace has room for it.

A checkpoint holds what the optimizer works on, in fp32, and its states; frozen weights are never
in it. A new checkpoint is complete before the oldest is removed.
"""

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import Failure, ModelFacts, WorkspaceFacts

from finetune_operator.planner.memory import IMPORTANCE, SAVED
from finetune_operator.planner.parameters import trained_parameters
from finetune_operator.planner.quantity import size_text


def checkpoint_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """One checkpoint: fp32 weights and optimizer states, of the adapters or of the whole model."""
    each = SAVED[spec.training.optimizer]
    if spec.method.type == "AdaLoRA":
        each += IMPORTANCE
    return each * trained_parameters(model, spec.method)


def checkpoints_at_once(spec: FineTuneJobSpec) -> int:
    """Those that are kept, the one that is written, and the best one with early stopping."""
    best = 1 if spec.training.early_stopping else 0
    return spec.training.checkpoint.keep_last + 1 + best


def output_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """What train leaves for evaluate and export: a model as its base was saved, or adapters."""
    if spec.method.type == "Full":
        return model.weight_bytes
    return 4 * trained_parameters(model, spec.method)


def artifact_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """What export writes: a merged model is as large as its base; a prefix stays beside it."""
    return output_bytes(spec, model) if spec.method.type == "Prefix" else model.weight_bytes


def training_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """The most that a job has on disk at once after prepare."""
    checkpoints = checkpoints_at_once(spec) * checkpoint_bytes(spec, model)
    return checkpoints + output_bytes(spec, model) + artifact_bytes(spec, model)


def room_for_training(
    spec: FineTuneJobSpec, model: ModelFacts, workspace: WorkspaceFacts | None, claim: str
) -> Failure | None:
    """WorkspaceTooSmall where what prepare found free is less than what will be written."""
    need = training_bytes(spec, model)
    if workspace is None or need <= workspace.free_bytes:
        return None
    count, each = checkpoints_at_once(spec), checkpoint_bytes(spec, model)
    return Failure(
        stage="train",
        reason="WorkspaceTooSmall",
        message=(
            f"training writes {size_text(need)}: {count} checkpoints of {size_text(each)}, "
            f"trained weights of {size_text(output_bytes(spec, model))} and an artifact of "
            f"{size_text(artifact_bytes(spec, model))}; claim {claim} has "
            f"{size_text(workspace.free_bytes)} free"
        ),
        remedy="; or ".join(_remedies(spec, model, workspace, claim)),
    )


def _remedies(
    spec: FineTuneJobSpec, model: ModelFacts, workspace: WorkspaceFacts, claim: str
) -> list[str]:
    lacking = training_bytes(spec, model) - workspace.free_bytes
    ways = [
        f"enlarge claim {claim} by {size_text(lacking)}",
        "delete FineTuneJobs whose artifacts nobody needs",
    ]
    spare = -(-lacking // checkpoint_bytes(spec, model))
    keep = spec.training.checkpoint.keep_last - spare
    if keep >= 1:
        ways.append(f"set training.checkpoint.keepLast to {keep}")
    return ways

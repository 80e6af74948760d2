"""How much host memory export takes, and whether the pods without devices may request as much.

Export maps the files of the base model and writes the merged weights into memory, one copy of the
model, before it saves them: merging LoRA into 1.45 GiB of weights took 1.77 GiB of anonymous
memory, 0.32 GiB of which before the model was loaded, and QLoRA 1.84 GiB. Each weight is merged in
fp32. A model of method Full is saved from the mapped files and takes less, unless it is a mixture
of experts or has weights that were not trained.
"""

from finetune_api.facts import ModelFacts
from finetune_api.failure import Failure

from finetune_operator.planner.parameters import estimate_experts
from finetune_operator.planner.quantity import GIB, floor_quantity, format_bytes

FP32_COPIES = 3
"""The weight, its update and their sum."""


def export_memory_bytes(model: ModelFacts) -> int:
    """Memory of the export pod: the weights, fp32 copies of the largest one, and the process."""
    return GIB + model.weight_bytes + FP32_COPIES * 4 * _largest_weight(model)


def check_export_memory(model: ModelFacts, maximum: str | None) -> Failure | None:
    """DoesNotFit if export needs more memory than a pod without devices may request."""
    need = export_memory_bytes(model)
    if maximum is None or need <= floor_quantity(maximum):
        return None
    return Failure(
        stage="export",
        reason="DoesNotFit",
        message=(
            f"exporting {model.parameters / 1e9:.2f} B parameters takes about {format_bytes(need)} "
            f"of host memory; pods without devices may request {maximum}"
        ),
        remedy=(
            f"give cpuPods nodes with {format_bytes(need)} for a pod and raise cpuPods.maxMemory "
            "in the chart; or use a smaller model"
        ),
    )


def _largest_weight(model: ModelFacts) -> int:
    """Parameters of the embedding, or of the inputs of all experts of a layer, which are one."""
    experts = estimate_experts(model)
    gates = 2 * experts if experts > 1 else 1
    layer = gates * model.intermediate_size * model.hidden_size
    return min(model.parameters, max(layer, model.vocabulary * model.hidden_size))

"""How much host memory export takes, and whether the pods without devices may request as much.

Export maps the files of the base model, merges each weight in fp32, and holds the merged weights in
memory until they are saved. Saving a mixture of experts copies the gate and up weights of all its
experts as well, because the files hold them apart. Anonymous memory:

- 0.4 GiB for the process, whatever the model, for which 1 GiB is requested;
- 1.0 times the weights of a Llama, 1.5 times those of a mixture of experts, and the adapter in
  fp32, with LoRA in bf16 (tests/trainer/test_export_memory.py prints these and the process's);
- `FP32_COPIES` of the largest weight while it is merged, by the code of PEFT.

A model of method Full is saved from the mapped files and takes less, unless it is a mixture of
experts or has weights that were not trained.
"""

from finetune_api.facts import ModelFacts
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec

from finetune_operator.planner.disk import output_bytes
from finetune_operator.planner.parameters import estimate_experts
from finetune_operator.planner.quantity import GIB, floor_quantity, format_bytes

FP32_COPIES = 4
"""The weight, its update before and after it is scaled, and the weight merged before it."""
MARGIN = 0.05
"""Of what is held, chosen: page tables, which count for the pod, and what the allocator keeps."""


def export_memory_bytes(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """Memory of the export pod."""
    adapter = 0 if spec.method.type == "Full" else output_bytes(spec, model)
    held = model.weight_bytes + _split_experts_bytes(model) + adapter
    return GIB + held + int(MARGIN * held) + FP32_COPIES * 4 * _largest_weight(model)


def check_export_memory(
    spec: FineTuneJobSpec, model: ModelFacts, maximum: str | None
) -> Failure | None:
    """DoesNotFit if export needs more memory than a pod without devices may request."""
    need = export_memory_bytes(spec, model)
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
    layer = _expert_inputs(model) or model.intermediate_size * model.hidden_size
    return min(model.parameters, max(layer, model.vocabulary * model.hidden_size))


def _split_experts_bytes(model: ModelFacts) -> int:
    """Size of the inputs of all experts in all layers."""
    inputs = min(model.parameters, model.layers * _expert_inputs(model))
    return model.weight_bytes * inputs // model.parameters


def _expert_inputs(model: ModelFacts) -> int:
    """Parameters of the gate and up weights of all experts of a layer; 0 without a mixture."""
    experts = estimate_experts(model)
    return 2 * experts * model.intermediate_size * model.hidden_size if experts > 1 else 0

"""How many devices one replica of a served model takes."""

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.run import Failure, ModelFacts

from finetune_operator.planner.memory import serving_bytes
from finetune_operator.planner.quantity import size_text, whole


def serving_devices(
    model: ModelFacts, profile_name: str, profile: AcceleratorProfileSpec
) -> int | Failure:
    """Devices for inference: the smallest number on one node that fits, or why none does.

    Tensor parallelism divides attention heads, so only divisors of their number are allowed.
    A CPU pool has no devices to count: always 1.
    """
    if profile.resource_name is None:
        return 1
    available = whole(profile.memory_per_device)
    for devices in range(1, profile.devices_per_node + 1):
        if model.attention_heads % devices == 0 and serving_bytes(model, devices) <= available:
            return devices
    need = serving_bytes(model, profile.devices_per_node)
    return Failure(
        stage="serve",
        reason="DoesNotFit",
        message=(
            f"{model.parameters / 1e9:.2f} B parameters take about {size_text(need)} on each of "
            f"{profile.devices_per_node} devices to answer; profile {profile_name} has "
            f"{size_text(available)}"
        ),
        remedy="use a profile with more memory or more devices on a node",
    )

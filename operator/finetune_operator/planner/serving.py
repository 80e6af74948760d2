"""How many devices one replica of a served model takes."""

from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.facts import ModelFacts
from finetune_api.failure import Failure

from finetune_operator.planner.memory import serving_bytes
from finetune_operator.planner.quantity import floor_quantity, format_bytes


def plan_serving_devices(
    model: ModelFacts, profile_name: str, profile: AcceleratorProfileSpec
) -> int | Failure:
    """The smallest number of devices on one node that fits, or DoesNotFit.

    Tensor parallelism divides attention heads, so only divisors of their number are allowed.
    A CPU pool has no devices to count: always 1.
    """
    if profile.resource_name is None:
        return 1
    available = floor_quantity(profile.memory_per_device)
    for devices in range(1, profile.devices_per_node + 1):
        if model.attention_heads % devices == 0 and serving_bytes(model, devices) <= available:
            return devices
    need = serving_bytes(model, profile.devices_per_node)
    return Failure(
        stage="serve",
        reason="DoesNotFit",
        message=(
            f"serving {model.parameters / 1e9:.2f} B parameters takes about {format_bytes(need)} "
            f"on each of {profile.devices_per_node} devices; profile {profile_name} has "
            f"{format_bytes(available)}"
        ),
        remedy="use a profile with more memory or more devices on a node",
    )

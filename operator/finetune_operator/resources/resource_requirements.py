"""Requests and limits of a container, from a profile or from the size of a model."""

from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfileSpec

from finetune_operator.planner.quantity import GIB, multiply_quantity


def build_device_resources(profile: AcceleratorProfileSpec, devices: int) -> dict[str, Any]:
    """Resources of a pod with `devices` devices of a pool.

    Only accelerator pools get limits, because their pods own the nodes. A CPU pool is shared, and
    a limit there would throttle a process that could use idle cores.
    """
    requests = {
        "cpu": multiply_quantity(profile.cpu_per_device, devices),
        "memory": multiply_quantity(profile.host_memory_per_device, devices),
    }
    if profile.resource_name is None:
        return {"requests": requests}
    limits = {"memory": requests["memory"], profile.resource_name: str(devices)}
    return {"requests": {**requests, profile.resource_name: str(devices)}, "limits": limits}


def build_host_resources(weight_bytes: int) -> dict[str, Any]:
    """Resources of a pod without devices that holds 1.5 times the weights of a model in memory."""
    memory = GIB + weight_bytes * 3 // 2
    return {"requests": {"cpu": "500m", "memory": f"{-(-memory // GIB)}Gi"}}


WITHOUT_MODEL = build_host_resources(0)
"""Resources of a pod that holds no weights in memory."""

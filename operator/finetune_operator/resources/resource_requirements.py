"""Requests and limits of a container, from a profile or from the size of a model."""

from collections.abc import Mapping
from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfileSpec, Limits

from finetune_operator.planner.quantity import GIB, multiply_quantity, parse_quantity

Quantities = dict[str, str]
"""Quantities by the name of a resource."""
MORE_POOL_MEMORY = (
    "raise hostMemoryPerDevice in the AcceleratorProfile, or limitsPerDevice.memory if it is set"
)
MORE_HOST_MEMORY = (
    "raise cpuPods.limits.memory in the chart, or the default of the namespace's LimitRange"
)
"""The remedy for a container with devices, or without, that used more memory than its limit."""


def build_device_resources(profile: AcceleratorProfileSpec, devices: int) -> dict[str, Any]:
    """Resources of a pod with `devices` devices of a pool.

    Only accelerator pools have a limit of memory by default, because their pods own the nodes. A
    CPU pool is shared, and a limit there would throttle a process that could use idle cores.
    """
    requests = {
        "cpu": multiply_quantity(profile.cpu_per_device, devices),
        "memory": multiply_quantity(profile.host_memory_per_device, devices),
    }
    limits: Quantities = {}
    if profile.resource_name is not None:
        requests[profile.resource_name] = str(devices)
        limits = {name: requests[name] for name in ("memory", profile.resource_name)}
    for name, quantity in _list_limits(profile.limits_per_device).items():
        limits[name] = multiply_quantity(quantity, devices)
    return {"requests": requests, **({"limits": limits} if limits else {})}


def build_training_resources(profile: AcceleratorProfileSpec, devices: int) -> dict[str, Any]:
    """Resources of a training pod: also those of the fabric that connects the gang."""
    resources = build_device_resources(profile, devices)
    if profile.extra_resources:
        # Kubernetes does not overcommit these, so request and limit must be equal.
        for part in ("requests", "limits"):
            resources[part] = {**resources.get(part, {}), **profile.extra_resources}
    return resources


def build_host_requests(memory_bytes: int) -> Quantities:
    """Requests of a pod without devices that takes this memory."""
    return {"cpu": "500m", "memory": f"{-(-memory_bytes // GIB)}Gi"}


def build_host_resources(requests: Mapping[str, str], limits: Limits | None) -> dict[str, Any]:
    """Resources of a pod without devices; a limit below its request is raised to it."""
    raised = {
        name: max(quantity, requests[name], key=parse_quantity)
        for name, quantity in _list_limits(limits).items()
    }
    return {"requests": dict(requests), **({"limits": raised} if raised else {})}


def _list_limits(limits: Limits | None) -> Mapping[str, str]:
    given = {"cpu": limits.cpu, "memory": limits.memory} if limits else {}
    return {name: quantity for name, quantity in given.items() if quantity is not None}

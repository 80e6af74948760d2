"""What NetworkPolicies allow, by the rules of the Kubernetes documentation.

kube-apiserver stores policies and enforces none, and the local cluster has no plugin that does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from tests.api.client import Manifest

Direction = Literal["ingress", "egress"]


@dataclass(frozen=True)
class Pod:
    """One end of a connection."""

    namespace: str
    labels: Mapping[str, str]
    ip: str = "10.1.2.3"


@dataclass(frozen=True)
class Outside:
    """An address that belongs to no pod."""

    ip: str


End = Pod | Outside


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches."""
    equal = selector.get("matchLabels", {}).items() <= labels.items()
    return equal and all(_holds(each, labels) for each in selector.get("matchExpressions", ()))


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "Exists":
            return value is not None
    raise NotImplementedError(expression["operator"])


def applies(policy: Manifest, pod: Pod) -> bool:
    """Whether a policy selects a pod."""
    inside = policy["metadata"]["namespace"] == pod.namespace
    return inside and selects(policy["spec"]["podSelector"], pod.labels)


def connects(
    policies: Iterable[Manifest], source: End, target: End, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the policies of both ends allow a connection."""
    every = list(policies)
    return _allows(every, "egress", source, target, port, protocol) and _allows(
        every, "ingress", target, source, port, protocol
    )


def _allows(
    policies: list[Manifest], direction: Direction, end: End, other: End, port: int, protocol: str
) -> bool:
    if isinstance(end, Outside):
        return True
    of_pod = [
        each
        for each in policies
        if applies(each, end) and direction.capitalize() in each["spec"]["policyTypes"]
    ]
    return not of_pod or any(
        _has_port(rule, port, protocol) and _has_peer(rule, direction, each, other)
        for each in of_pod
        for rule in each["spec"].get(direction) or ()
    )


def _has_port(rule: Mapping[str, Any], port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return not ports or any(each["port"] == port and each["protocol"] == protocol for each in ports)


def _has_peer(rule: Mapping[str, Any], direction: Direction, policy: Manifest, other: End) -> bool:
    peers = rule.get("from" if direction == "ingress" else "to")
    namespace = policy["metadata"]["namespace"]
    return not peers or any(_matches(peer, namespace, other) for peer in peers)


def _matches(peer: Mapping[str, Any], namespace: str, other: End) -> bool:
    if block := peer.get("ipBlock"):
        address = ip_address(other.ip)
        excepted = any(address in ip_network(each) for each in block.get("except", ()))
        return address in ip_network(block["cidr"]) and not excepted
    if isinstance(other, Outside):
        return False
    if (of_namespace := peer.get("namespaceSelector")) is None:
        inside = other.namespace == namespace
    else:
        inside = selects(of_namespace, {"kubernetes.io/metadata.name": other.namespace})
    return inside and selects(peer.get("podSelector", {}), other.labels)

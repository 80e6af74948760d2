"""The optional component that enforces NetworkPolicies: kube-router's firewall on every node.

The plugin that connects the pods enforces none. kube-router translates policies into rules of
iptables and sets of addresses; it neither routes nor replaces kube-proxy here. It is built only
where it is wanted, in a cache folder of its own, and it ends with the node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hack.cluster.binaries import HERE, Program, built
from hack.cluster.layout import API_URL, PKI, RUN, SERVICE_NETWORK
from hack.cluster.pki import Authority

COMPONENT = "kube-router"
WANTED = RUN / "network-policies"
"""Exists while the cluster that is up enforces NetworkPolicies."""
_VERSION = "v2.1.0"
_MODULE = "github.com/cloudnativelabs/kube-router/v2"
_PROGRAM = Program(
    COMPONENT,
    HERE / "gomod/kube-router",
    f"{_MODULE}/cmd/kube-router",
    (f"{_MODULE}/pkg/version.Version={_VERSION}",),
)


def program() -> Path:
    """The path of kube-router, built if need be."""
    return built(_PROGRAM, COMPONENT)


def access() -> list[dict[str, Any]]:
    """What kube-router may read; it writes nothing."""
    rbac = "rbac.authorization.k8s.io"
    read = ["get", "list", "watch"]
    resources = {
        "": ["endpoints", "namespaces", "nodes", "pods", "services"],
        "discovery.k8s.io": ["endpointslices"],
        "networking.k8s.io": ["networkpolicies"],
    }
    rules = [{"apiGroups": [g], "resources": r, "verbs": read} for g, r in resources.items()]
    metadata = {"name": COMPONENT}
    return [
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": metadata,
            "rules": rules,
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": COMPONENT},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": COMPONENT}],
        },
    ]


def issue_certificate() -> None:
    """Issue the pair of kube-router's user, and write its kubeconfig."""
    pki = Authority(PKI)
    pki.issue(COMPONENT, f"/CN={COMPONENT}")
    pki.write_kubeconfig(COMPONENT, API_URL)


def command(node: str) -> list[str | Path]:
    """The command line of kube-router on a node."""
    flags: dict[str, str | int | Path] = {
        "run-firewall": "true",
        "run-router": "false",
        "run-service-proxy": "false",
        "kubeconfig": PKI / f"{COMPONENT}.kubeconfig",
        "hostname-override": node,
        "service-cluster-ip-range": SERVICE_NETWORK,
        "iptables-sync-period": "30s",
        "health-port": 0,
    }
    return [program(), *(f"--{name}={value}" for name, value in flags.items())]

"""Objects that a cluster needs from the start: the cluster's DNS and the default storage class."""

from __future__ import annotations

from typing import Any

from hack.cluster.layout import CONTROL_PLANE_IP, DNS_IP

STORAGE_CLASS = "shared"


def dns() -> list[dict[str, Any]]:
    """Access rights, Service and endpoint of a CoreDNS that runs next to the API server."""
    rbac = "rbac.authorization.k8s.io"
    ports = [
        {"name": name, "port": 53, "protocol": protocol}
        for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    read = ["list", "watch"]
    core = {
        "apiGroups": [""],
        "resources": ["endpoints", "services", "pods", "namespaces"],
        "verbs": read,
    }
    slices = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read}
    return [
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": [core, slices],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": "system:coredns"}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS_IP, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-cp",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [CONTROL_PLANE_IP], "conditions": {"ready": True}}],
        },
    ]


def storage_class() -> dict[str, Any]:
    """The default StorageClass: static volumes, bound as soon as they are claimed."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": default},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
    }


def volume(name: str, path: str, claim: tuple[str, str] | None = None) -> dict[str, Any]:
    """A PersistentVolume on `path` of every node, kept for `claim` (namespace, name) if given."""
    spec: dict[str, Any] = {
        "capacity": {"storage": "100Gi"},
        "accessModes": ["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": STORAGE_CLASS,
        "hostPath": {"path": path, "type": "Directory"},
    }
    if claim:
        namespace, claim_name = claim
        reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        spec["claimRef"] = {**reference, "namespace": namespace, "name": claim_name}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": spec,
    }


def claim(name: str, namespace: str, volume_name: str) -> dict[str, Any]:
    """A PersistentVolumeClaim for exactly one volume."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": STORAGE_CLASS,
            "volumeName": volume_name,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }

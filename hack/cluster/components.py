"""The daemons of the cluster: command lines and configuration, as a stock installation has.

What differs from a stock installation, and why: times are shorter so that a test of a dead node
does not take minutes; the control plane's own daemons listen on its private loopback; nothing is
supervised, because a test checks what happens when a daemon stays dead.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hack.cluster import policies
from hack.cluster.binaries import program
from hack.cluster.cgroups import PREFIX
from hack.cluster.layout import (
    API_SERVICE_IP,
    API_URL,
    CONTROL_PLANE,
    CONTROL_PLANE_IP,
    DNS_IP,
    DOMAIN,
    NODES,
    PKI,
    POD_NETWORK,
    RUN,
    SERVICE_NETWORK,
    load_settings,
)
from hack.cluster.paths import put
from hack.cluster.pki import Authority
from hack.cluster.tinyimage import PAUSE

Flags = dict[str, str | int | float | Path]
_ETCD = "http://127.0.0.1:2379"


def issue_certificates() -> None:
    """Make the authority, a pair for every component, and their kubeconfigs."""
    pki = Authority(PKI)
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
    dns = [f"DNS:{n}" for n in (*service, f"kubernetes.default.svc.{DOMAIN}")]
    addresses = [f"IP:{ip}" for ip in ("127.0.0.1", CONTROL_PLANE_IP, API_SERVICE_IP)]
    pki.issue("apiserver", "/CN=kube-apiserver", ",".join(dns + addresses))
    pki.issue("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    users = {
        "admin": "/O=system:masters/CN=admin",
        "kube-controller-manager": "/CN=system:kube-controller-manager",
        "kube-scheduler": "/CN=system:kube-scheduler",
        "kube-proxy": "/CN=system:kube-proxy",
        "coredns": "/CN=system:coredns",
    }
    for name, node in NODES.items():
        users[name] = f"/O=system:nodes/CN=system:node:{name}"
        pki.issue(f"{name}-serving", users[name], f"DNS:{name},IP:{node.ip}")
    for name, subject in users.items():
        pki.issue(name, subject)
        pki.write_kubeconfig(name, API_URL)


def command(machine: str, component: str) -> list[str | Path]:
    """The command line of one component; KeyError if the machine has no such component."""
    if machine == CONTROL_PLANE:
        flags = {
            "etcd": _etcd,
            "kube-apiserver": _apiserver,
            "kube-controller-manager": _controller_manager,
            "kube-scheduler": _scheduler,
        }
        if component == "coredns":
            return [program("coredns"), "-conf", RUN / CONTROL_PLANE / "Corefile"]
        return [program(component), *_words(flags[component]())]
    folder = RUN / machine
    if component == "containerd":
        return ["containerd", "-c", folder / "containerd.toml"]
    if component == "kubelet":
        node: Flags = {"hostname-override": machine, "node-ip": NODES[machine].ip, "v": 2}
        node |= {"config": folder / "kubelet.yaml", "kubeconfig": PKI / f"{machine}.kubeconfig"}
        return [program("kubelet"), *_words(node)]
    if component == policies.COMPONENT:
        return policies.command(machine)
    return [program({"kube-proxy": component}[component]), f"--config={folder / 'kube-proxy.yaml'}"]


def _words(flags: Flags) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]


def _etcd() -> Flags:
    return {
        "data-dir": RUN / CONTROL_PLANE / "etcd",
        "listen-client-urls": _ETCD,
        "advertise-client-urls": _ETCD,
        "listen-peer-urls": "http://127.0.0.1:2380",
        # The data need not survive a power cut of this computer, and a slow disk would look like
        # dead nodes.
        "unsafe-no-fsync": "true",
    }


def _apiserver() -> Flags:
    pki = Authority(PKI)
    return {
        "etcd-servers": _ETCD,
        "secure-port": 6443,
        "advertise-address": CONTROL_PLANE_IP,
        "service-cluster-ip-range": SERVICE_NETWORK,
        "allow-privileged": "true",
        "tls-cert-file": pki.certificate("apiserver"),
        "tls-private-key-file": pki.key("apiserver"),
        "client-ca-file": pki.certificate("ca"),
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "service-account-issuer": f"https://kubernetes.default.svc.{DOMAIN}",
        "service-account-key-file": pki.key("sa"),
        "service-account-signing-key-file": pki.key("sa"),
        "kubelet-client-certificate": pki.certificate("apiserver-kubelet"),
        "kubelet-client-key": pki.key("apiserver-kubelet"),
        "kubelet-certificate-authority": pki.certificate("ca"),
        "kubelet-preferred-address-types": "InternalIP",
        "default-not-ready-toleration-seconds": 5,
        "default-unreachable-toleration-seconds": 5,
    }


def _controller_manager() -> Flags:
    return {
        "kubeconfig": PKI / "kube-controller-manager.kubeconfig",
        "leader-elect": "false",
        "service-account-private-key-file": Authority(PKI).key("sa"),
        "root-ca-file": Authority(PKI).certificate("ca"),
        "use-service-account-credentials": "true",
        "bind-address": "127.0.0.1",
        "controllers": "*",
        "node-monitor-period": "1s",
        "node-monitor-grace-period": f"{load_settings()['grace']:g}s",
    }


def _scheduler() -> Flags:
    kubeconfig = PKI / "kube-scheduler.kubeconfig"
    return {"kubeconfig": kubeconfig, "leader-elect": "false", "bind-address": "127.0.0.1"}


def write_corefile() -> None:
    """Configure CoreDNS: names of the cluster only, at the control plane's address."""
    kubeconfig = PKI / "coredns.kubeconfig"
    plugin = f'kubernetes {DOMAIN} in-addr.arpa {{\n    kubeconfig "{kubeconfig}"\n    ttl 1\n  }}'
    text = f".:53 {{\n  bind {CONTROL_PLANE_IP}\n  errors\n  {plugin}\n}}\n"
    put(RUN / CONTROL_PLANE / "Corefile", text)


def write_node_files(name: str) -> None:
    """Configure containerd, CNI, kubelet and kube-proxy of a node."""
    folder = RUN / name
    put(folder / "containerd.toml", _CONTAINERD % PAUSE)
    put(folder / "etc/cni/net.d/10-pods.conflist", json.dumps(_cni(NODES[name].pods), indent=1))
    put(folder / "resolv.conf", "# no upstream: the cluster is closed\n")
    put(folder / "kubelet.yaml", json.dumps(_kubelet(name), indent=1))
    put(folder / "kube-proxy.yaml", json.dumps(_kube_proxy(name), indent=1))


# Scores below that of the caller may not be set inside namespaces, hence restrict_oom_score_adj.
_CONTAINERD = """version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%s"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def _cni(subnet: str) -> dict[str, Any]:
    ranges = [[{"subnet": subnet}]]
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,  # true would hide the real address of a pod from pods of the other node
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def _kubelet(name: str) -> dict[str, Any]:
    # Both nodes see all memory of this computer: each promises half of it.
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    eviction = {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%"}
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(PKI / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(PKI / f"{name}-serving.crt"),
        "tlsPrivateKeyFile": str(PKI / f"{name}-serving.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{PREFIX}/{name}",
        "failCgroupV1": False,
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "systemReserved": {"cpu": "0", "memory": str(total // 2)},
        "failSwapOn": False,
        "maxOpenFiles": 20000,
        "oomScoreAdj": 0,
        "clusterDNS": [DNS_IP],
        "clusterDomain": DOMAIN,
        "resolvConf": str(RUN / name / "resolv.conf"),
        "evictionHard": {**eviction, "imagefs.available": "1%"},
        # Images come by import, not by pull: one that is collected could not be had again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # Without it the kubelet has no disk figures, and its eviction loop never settles.
        "localStorageCapacityIsolation": True,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "10s",
        "nodeLeaseDurationSeconds": 8,
        "healthzBindAddress": "127.0.0.1",
    }


def _kube_proxy(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(PKI / "kube-proxy.kubeconfig")},
        "hostnameOverride": name,
        "clusterCIDR": POD_NETWORK,
        "detectLocalMode": "ClusterCIDR",
        "bindAddress": NODES[name].ip,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # The connection table's size belongs to the computer and cannot be set from a namespace.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "iptables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
    }

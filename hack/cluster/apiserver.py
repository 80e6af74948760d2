"""A Kubernetes API for tests: etcd and kube-apiserver as plain processes, no root needed.

It is the real API server with RBAC, admission, CRDs, server-side apply and service account tokens;
there is no node and, unless requested, no controller: nothing but the test changes an object. Every
process is tied to this one by the kernel's parent-death signal, so that nothing outlives a test
run.

    with ControlPlane(tmp_path) as cp:
        cp.kubectl("apply", "-f", "crds/")
"""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from hack.cluster.binaries import ensure
from hack.cluster.errors import ClusterError
from hack.cluster.pki import Authority
from hack.cluster.prerequisites import install
from hack.cluster.process import run

ISSUER = "https://kubernetes.default.svc.cluster.local"
START_SECONDS = 60.0


class ControlPlane:
    """A running API server in `folder` (its data, certificates and logs); use it as a context.

    `controllers` adds kube-controller-manager: garbage collection, Jobs, namespace deletion,
    default service accounts. Without it a namespace never finishes to terminate, owner references
    are not followed and pods are admitted without a ServiceAccount object.
    """

    def __init__(self, folder: Path, controllers: bool = False) -> None:
        self.folder = Path(folder).resolve()
        self.controllers = controllers
        install(["openssl"])
        self.binaries = binaries()
        self.url = ""
        self.kubeconfig = self.folder / "pki" / "admin.kubeconfig"
        self._apiserver: list[str] = []
        self._etcd: list[str] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> ControlPlane:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def kubectl(self, *words: str | Path, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it printed; ClusterError if it fails."""
        argv = [self.binaries / "kubectl", "--kubeconfig", self.kubeconfig, *words]
        return run(argv, stdin=stdin, timeout=120)

    def kill_apiserver(self) -> None:
        """Kill the API server without warning."""
        self._end("kube-apiserver", signal.SIGKILL)

    def start_apiserver(self) -> None:
        """Start it again, on the same port and with the same data, and wait until it is ready."""
        self._launch("kube-apiserver", self._apiserver)
        self._wait_ready()

    def restart_apiserver(self) -> None:
        """Kill the API server and start it again."""
        self.kill_apiserver()
        self.start_apiserver()

    def back_up(self) -> None:
        """Keep the data as they are now for `restore`; the API server is restarted for it."""
        self._with_data(lambda data, kept: shutil.copytree(data, kept))

    def restore(self) -> None:
        """Go back to the data that were kept: what was written since has never happened."""

        def replace(data: Path, kept: Path) -> None:
            shutil.rmtree(data)
            kept.rename(data)

        self._with_data(replace)

    def _with_data(self, change: Callable[[Path, Path], object]) -> None:
        self.kill_apiserver()
        self._end("etcd", signal.SIGKILL)
        change(self.folder / "etcd", self.folder / "etcd.kept")
        self._launch("etcd", self._etcd)
        self.start_apiserver()

    def stop(self) -> None:
        """End every process and wait until it is gone; safe to call twice."""
        for name in reversed(list(self._processes)):
            self._end(name, signal.SIGKILL)
        self._processes.clear()

    def _start(self) -> None:
        client, peer, secure, kcm = _free_ports(4)
        self.url = f"https://127.0.0.1:{secure}"
        pki = self._issue()
        etcd, data = f"http://127.0.0.1:{client}", self.folder / "etcd"
        shutil.rmtree(data, ignore_errors=True)
        urls = [f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"]
        peers = f"http://127.0.0.1:{peer}"
        initial = [f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}"]
        urls += [f"--listen-peer-urls={peers}", *initial]
        self._etcd = [f"--data-dir={data}", *urls, "--unsafe-no-fsync"]
        self._launch("etcd", self._etcd)
        self._apiserver = self._apiserver_flags(pki, etcd, secure)
        self._launch("kube-apiserver", self._apiserver)
        self._wait_ready()
        if self.controllers:
            self._launch("kube-controller-manager", _controller_flags(pki, self.url, kcm))

    def _issue(self) -> Authority:
        pki = Authority(self.folder / "pki")
        names = "DNS:kubernetes,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1"
        pki.issue("apiserver", "/CN=kube-apiserver", names)
        pki.issue("admin", "/O=system:masters/CN=admin")
        pki.issue("kcm", "/CN=system:kube-controller-manager")
        pki.write_kubeconfig("admin", self.url)
        return pki

    def _apiserver_flags(self, pki: Authority, etcd: str, port: int) -> list[str]:
        flags = {
            "etcd-servers": etcd,
            "bind-address": "127.0.0.1",
            "secure-port": port,
            # A loopback address may not become the endpoint of the `kubernetes` Service.
            "endpoint-reconciler-type": "none",
            "service-cluster-ip-range": "10.96.0.0/16",
            "tls-cert-file": pki.certificate("apiserver"),
            "tls-private-key-file": pki.key("apiserver"),
            "client-ca-file": pki.certificate("ca"),
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "service-account-issuer": ISSUER,
            "service-account-key-file": pki.key("sa"),
            "service-account-signing-key-file": pki.key("sa"),
        }
        if not self.controllers:  # no controller creates the ServiceAccount that it needs
            flags["disable-admission-plugins"] = "ServiceAccount"
        return [f"--{name}={value}" for name, value in flags.items()]

    def _launch(self, name: str, flags: list[str]) -> None:
        # setpriv arms the parent-death signal before exec: safe where a preexec hook is not.
        argv = ["setpriv", "--pdeathsig", "KILL", str(self.binaries / name), *flags]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes[name] = process

    def _end(self, name: str, sig: signal.Signals) -> None:
        process = self._processes.pop(name)
        if process.poll() is None:
            process.send_signal(sig)
        process.wait()

    def _wait_ready(self) -> None:
        context = ssl.create_default_context(cafile=str(self.folder / "pki" / "ca.crt"))
        context.load_cert_chain(
            self.folder / "pki" / "admin.crt", self.folder / "pki" / "admin.key"
        )
        https = urllib.request.HTTPSHandler(context=context)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)
        deadline = time.monotonic() + START_SECONDS
        paths = ["/readyz", "/api/v1/namespaces/default"]
        while paths:
            self._check_alive()
            try:
                opener.open(self.url + paths[0], timeout=5).read()
                paths.pop(0)
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"no API server after {START_SECONDS} s: {self._log()}"
                    ) from None
                time.sleep(0.05)

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise ClusterError(f"{name} ended with {process.returncode}: {self._log(name)}")

    def _log(self, name: str = "kube-apiserver") -> str:
        path = self.folder / f"{name}.log"
        return f"{path}: {path.read_text(errors='replace')[-1500:]}"


def binaries(*more: str) -> Path:
    """The folder with etcd, the API server, its controllers, kubectl and helm, built if missing."""
    return ensure(["etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "helm", *more])


def _controller_flags(pki: Authority, url: str, port: int) -> list[str]:
    kubeconfig = pki.write_kubeconfig("kcm", url)
    return [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--service-account-private-key-file={pki.key('sa')}",
        f"--root-ca-file={pki.certificate('ca')}",
        "--use-service-account-credentials",
        "--controllers=*",
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()

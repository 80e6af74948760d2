"""Certificates and kubeconfigs: one authority per cluster, created again at every `up`, by openssl.

Elliptic keys because they take milliseconds. Kubeconfigs carry their certificates inside, so a
copy of the file works anywhere on the machine.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from hack.cluster.paths import put
from hack.cluster.process import run

_EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]


class Authority:
    """A certificate authority in a folder: `ca.crt`, `ca.key`, `sa.key` and a pair per name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        if not (folder / "sa.key").exists():
            usage = "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"
            self._request("ca", "/CN=local-cluster-ca", [usage])
            # Service account tokens are signed with RSA, the default of every Kubernetes version.
            run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"])

    def certificate(self, name: str) -> Path:
        """Where the certificate of `name` is."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """Where the private key of `name` is."""
        return self.folder / f"{name}.key"

    def issue(self, name: str, subject: str, alternative_names: str = "") -> None:
        """Issue a pair for clients and servers; `alternative_names` as in `DNS:a,IP:10.0.0.1`."""
        if self.certificate(name).exists():
            return
        extensions = [
            "extendedKeyUsage=clientAuth,serverAuth",
            "basicConstraints=critical,CA:FALSE",
        ]
        if alternative_names:
            extensions.append(f"subjectAltName={alternative_names}")
        signer: list[str | Path] = ["-CA", self.certificate("ca"), "-CAkey", self.key("ca")]
        self._request(name, subject, extensions, signer)

    def kubeconfig(self, name: str, server: str) -> str:
        """A kubeconfig (JSON, which is YAML) for the pair `name` at `server`."""
        entry = {
            "server": server,
            "certificate-authority-data": _base64(self.certificate("ca")),
        }
        user = {
            "client-certificate-data": _base64(self.certificate(name)),
            "client-key-data": _base64(self.key(name)),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "local",
            "clusters": [{"name": "local", "cluster": entry}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": name}}],
        }
        return json.dumps(document, indent=1) + "\n"

    def write_kubeconfig(self, name: str, server: str) -> Path:
        """Write the kubeconfig of `name` next to its key pair, readable by the owner only."""
        return put(self.folder / f"{name}.kubeconfig", self.kubeconfig(name, server), 0o600)

    def _request(
        self, name: str, subject: str, extensions: list[str], signer: list[str | Path] | None = None
    ) -> None:
        more = [word for e in extensions for word in ("-addext", e)]
        out: list[str | Path] = ["-keyout", self.key(name), "-out", self.certificate(name)]
        run(["openssl", "req", "-x509", *(signer or []), *_EC, "-subj", subject, *more, *out])


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()

"""An admission webhook that injects a sidecar into pods, as a service mesh does.

The API server calls it at an address of this computer, so it needs the cluster whose nodes are
namespaces of it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finetune_operator.resources.security_context import CONTAINER_SECURITY_CONTEXT

from hack.cluster.layout import HOST_IP
from hack.cluster.pki import Authority
from hack.demo.kubectl import Kubectl

NAME = "e2e-sidecars"
SIDECAR = "proxy"


@contextlib.contextmanager
def injected_sidecars(
    kubectl: Kubectl, folder: Path, image: str, labels: Mapping[str, str]
) -> Iterator[None]:
    """Pods with these labels get a container that runs until the pod is deleted."""
    authority = Authority(folder)
    authority.issue("webhook", "/CN=webhook", f"IP:{HOST_IP}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate("webhook"), authority.key("webhook"))
    server = ThreadingHTTPServer((HOST_IP, 0), _handler(image))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        kubectl.apply(_configuration(server.server_port, authority.certificate("ca"), labels))
        yield
    finally:
        kubectl.run("delete", "mutatingwebhookconfiguration", NAME, "--ignore-not-found")
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _configuration(port: int, authority: Path, labels: Mapping[str, str]) -> dict[str, Any]:
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [
            {
                "name": f"{NAME}.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 10,
                "objectSelector": {"matchLabels": dict(labels)},
                "rules": [{**pods, "resources": ["pods"]}],
                "clientConfig": {
                    "url": f"https://{HOST_IP}:{port}/",
                    "caBundle": base64.b64encode(authority.read_bytes()).decode(),
                },
            }
        ],
    }


def _handler(image: str) -> type[BaseHTTPRequestHandler]:
    container = {
        "name": SIDECAR,
        "image": image,
        "command": ["python", "-c", "import signal; signal.pause()"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": CONTAINER_SECURITY_CONTEXT,
    }
    patch = [{"op": "add", "path": "/spec/containers/-", "value": container}]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            uid = json.loads(self.rfile.read(length))["request"]["uid"]
            review = {
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "response": {
                    "uid": uid,
                    "allowed": True,
                    "patchType": "JSONPatch",
                    "patch": base64.b64encode(json.dumps(patch).encode()).decode(),
                },
            }
            body = json.dumps(review).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing on stderr, which is the test's."""

    return Handler

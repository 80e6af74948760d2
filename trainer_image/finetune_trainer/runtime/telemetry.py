"""Telemetry of a running stage: /progress, /metrics and /healthz on one small HTTP server.

`Report` is the one place to which a stage writes its progress; any thread may write, and the
server reads. The ranks are children of the pod's first process and report to it through one small
file each, replaced atomically: a file survives its writer, needs no protocol, and a reader never
sees half of it.
"""

import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finetune_api.progress import Progress
from finetune_api.protocol import StageName
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

RANK_FOLDER_ENV = "FINETUNE_RANK_FOLDER"
"""Names the folder of the rank files."""
GAUGES = {
    "step": "Optimizer steps, or items, done.",
    "total_steps": "Optimizer steps, or items, in all.",
    "loss": "Token-weighted training loss of the last step over all ranks.",
    "grad_norm": "Global L2 norm of the gradients before clipping.",
    "learning_rate": "Learning rate of the last step.",
    "epoch": "Passes over the training data so far.",
    "tokens_per_second": "Non-padding tokens per second over all ranks, smoothed.",
    "eta_seconds": "Estimated seconds until the stage ends.",
    "world_size": "Processes that train together.",
    "last_checkpoint_step": "Step of the newest complete checkpoint.",
    "checkpoint_seconds": "Seconds from the decision to save to the newest complete checkpoint.",
    "checkpoint_bytes": "Size of all files of the newest complete checkpoint.",
    "eval_loss": "Held-out loss of the last evaluation during training.",
    "data_wait_share": "Fraction of a step that waited for data, smoothed, 0 to 1.",
    "mfu": "Model FLOP/s utilisation, smoothed, 0 to 1.",
    "peak_memory_bytes": "Peak memory of the first rank of this pod.",
}


class Report:
    """The progress of one stage; safe to write and read from any thread."""

    def __init__(
        self, stage: StageName, attempt: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._progress = Progress(stage=stage, attempt=attempt, updated_at=clock())
        self._check_liveness: Callable[[], str | None] = lambda: None

    def set_liveness_check(self, check: Callable[[], str | None] | None) -> None:
        """Let /healthz fail while `check` returns an error; the server's threads call it."""
        self._check_liveness = check or (lambda: None)

    def liveness_error(self) -> str | None:
        """Reason to fail the liveness probe, so that the kubelet kills the container, or None."""
        return self._check_liveness()

    def update(self, message: str | None = None, **fields: Any) -> None:
        """Replace the given fields of Progress and stamp the time."""
        if message is not None:
            fields["message"] = message
        fields["updated_at"] = self._clock()
        with self._lock:
            self._progress = self._progress.model_copy(update=fields)

    def snapshot(self) -> Progress:
        """A copy of the progress that later updates do not change."""
        with self._lock:
            return self._progress


class _ProgressCollector:
    """Turns the report into Prometheus gauges named finetune_<stage>_<field>."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every gauge that has a value; called at each scrape."""
        progress = self._report.snapshot()
        prefix = f"finetune_{progress.stage}"
        for name, text in GAUGES.items():
            value = getattr(progress, name)
            if value is not None:
                yield GaugeMetricFamily(f"{prefix}_{name}", text, value=value)
        if progress.measures:
            yield labelled_gauge(
                f"{prefix}_measure",
                "Further metrics of the objective or the model.",
                ["name"],
                [((name,), value) for name, value in progress.measures.items()],
            )
        if progress.start_seconds:
            yield labelled_gauge(
                f"{prefix}_start_seconds",
                "Seconds from the start of the pod's first process to the first step, by part.",
                ["part"],
                [((part,), seconds) for part, seconds in progress.start_seconds.items()],
            )
        if progress.ranks:
            yield labelled_gauge(
                f"{prefix}_rank_heartbeat_timestamp_seconds",
                "Unix time of the last sign of life of a rank.",
                ["rank", "host"],
                [((str(each.rank), each.host), each.updated_at) for each in progress.ranks],
            )
            yield labelled_gauge(
                f"{prefix}_rank_stalled",
                "1 for a rank without a recent sign of life.",
                ["rank", "host"],
                [((str(each.rank), each.host), 1.0) for each in progress.stalled],
            )


def labelled_gauge(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    """A gauge with a value for each set of labels."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback for a client that closed its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _DualStackServer(_Server):
    """A server on IPv6 addresses that answers on IPv4 addresses too, on whichever the pod has."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        """Bind the socket to addresses of both families."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve_telemetry(report: Report, port: int = 0) -> ThreadingHTTPServer:
    """Start answering GET /progress, /metrics and /healthz on every address, in the background.

    Returns the server; with port 0 the kernel chooses one, which is its `server_port`.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ProgressCollector(report))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/progress":
                body, kind = report.snapshot().model_dump_json(by_alias=True), "application/json"
                self._send(200, body.encode(), kind)
            elif self.path == "/metrics":
                self._send(200, generate_latest(registry), "text/plain; version=0.0.4")
            elif self.path == "/healthz":
                error = report.liveness_error()
                self._send(503 if error else 200, f"{error or 'ok'}\n".encode(), "text/plain")
            else:
                self._send(404, b"try /progress, /metrics or /healthz\n", "text/plain")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log no request: the operator polls every few seconds."""

    server: _Server
    if socket.has_dualstack_ipv6():
        server = _DualStackServer(("::", port), Handler)
    else:
        server = _Server(("0.0.0.0", port), Handler)
    threading.Thread(target=server.serve_forever, name="telemetry", daemon=True).start()
    return server


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that no reader ever sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.chmod(0o644)
    partial.replace(path)


class RankFile:
    """State that one rank reports to the first process of its pod, at most twice a second."""

    INTERVAL_SECONDS = 0.5

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"rank-{rank:05d}.json"
        self._written_at = float("-inf")

    def write(self, state: dict[str, Any], force: bool = False) -> None:
        """Replace the file, unless it was written less than half a second ago."""
        now = time.monotonic()
        if force or now - self._written_at >= self.INTERVAL_SECONDS:
            self._written_at = now
            write_atomically(self._path, json.dumps(state).encode())


def make_rank_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for the rank files, in memory: a full or slow disk must not stop the reports."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(
        prefix="ranks-", dir=memory if os.access(memory, os.W_OK) else None
    )


def read_rank_files(folder: Path) -> list[dict[str, Any]]:
    """The last reported state of every rank of this pod, in order of the ranks."""
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("rank-*.json"))]

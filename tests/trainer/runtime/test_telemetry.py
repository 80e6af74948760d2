"""Metrics over HTTP, and the files in which ranks report their progress."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
from finetune_trainer.runtime.telemetry import Report, serve_telemetry

from tests.trainer.volumes import on_small_volume


def test_ranks_report_although_the_disk_of_the_node_is_full(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "there = sys.argv[1]; os.environ['TMPDIR'] = there\n"
        "try:\n    open(f'{there}/file', 'wb', buffering=0).write(b'0' * 2**23)\n"
        "    open(f'{there}/more', 'wb').write(b'0' * 2**23)\n"
        "except OSError:\n    pass\n"
        "from pathlib import Path\n"
        "from finetune_trainer.runtime.telemetry import RankFile, make_rank_folder\n"
        "from finetune_trainer.runtime.telemetry import read_rank_files\n"
        "with make_rank_folder() as name:\n    folder = Path(name)\n"
        "    RankFile(folder, 0).write({'rank': 0, 'step': 1})\n"
        "    print(read_rank_files(folder))\n"
    )
    assert "'step': 1" in on_small_volume(tmp_path, code)


def test_prometheus_metrics_have_the_values_of_progress() -> None:
    report = Report("train", attempt=1)
    metrics = {"rewards/accuracies": 0.75}
    report.update(mfu=0.5, data_wait_share=0.25, peak_memory_bytes=7, eval_loss=2.0)
    report.update(measures=metrics)
    server = serve_telemetry(report)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    server.shutdown()
    server.server_close()
    shown = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(shown["finetune_train_mfu"]) == 0.5
    assert float(shown["finetune_train_data_wait_share"]) == 0.25
    assert float(shown["finetune_train_peak_memory_bytes"]) == 7
    assert float(shown["finetune_train_eval_loss"]) == 2
    assert float(shown['finetune_train_measure{name="rewards/accuracies"}']) == 0.75


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_pod_answers_on_addresses_of_both_families(host: str) -> None:
    """A pod of a cluster with IPv6 alone has no IPv4 address for the operator and the probes."""
    server = serve_telemetry(Report("train", attempt=1))
    with urllib.request.urlopen(f"http://{host}:{server.server_port}/healthz") as answer:
        assert answer.read() == b"ok\n"
    server.shutdown()
    server.server_close()


def test_a_node_without_ipv6_is_served_over_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    server = serve_telemetry(Report("train", attempt=1))
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/healthz") as answer:
        assert answer.status == 200
    server.shutdown()
    server.server_close()

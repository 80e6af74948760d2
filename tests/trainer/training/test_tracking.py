"""Trackers get the metrics of a run and can neither fail it nor delay it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from finetune_api.run_config import RunConfig
from finetune_trainer.training import tracking
from finetune_trainer.training.throughput import History

from tests.trainer.jobs import ROOT, make_run, write_run

# The libraries that read the files back emit warnings and leave files open.
pytestmark = pytest.mark.filterwarnings("default")

TOKEN = "0123456789abcdef0123456789abcdef01234567"
STEP = {
    "loss": 2.5,
    "grad_norm": None,
    "learning_rate": 1e-4,
    "tokens_per_second": 1000.0,
    "mfu": 0.5,
    "peak_memory_bytes": 3 * 2**30,
    "data_wait_share": 0.25,
    "rewards/accuracies": 0.75,
}


@pytest.fixture
def run_of(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the run file of an attempt, which its tracking process reads."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}:{ROOT}")

    def make(tracking_spec: dict[str, Any] | None = None, attempt: int = 1) -> RunConfig:
        run = make_run(tmp_path, tiny_model_folder, attempt=attempt)
        run = run.model_copy(update={"raw_spec": {**run.raw_spec, "tracking": tracking_spec}})
        monkeypatch.setenv("FINETUNE_RUN_CONFIG", str(write_run(run, tmp_path / "run.json")))
        return run

    return make


def track(run: RunConfig, steps: range, stopped: bool = False) -> float:
    """Append steps as the loop does while trackers run; returns the seconds they needed to end."""
    history = History(tracking.history_path(run), rank=0)
    with tracking.run_trackers(lambda: stopped):
        for step in steps:
            evaluation = {"eval_loss": 3.0} if step == steps[-1] else {}
            history.append(step=step, **STEP, **evaluation)
        ended = time.monotonic()
    return time.monotonic() - ended


def charts(run: RunConfig) -> dict[str, list[tuple[int, float]]]:
    """Scalars of the event files as (step, value), by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(tracking.report_folder(run) / "tensorboard"))
    files.Reload()
    return {
        tag: [(event.step, event.value) for event in files.Scalars(tag)]
        for tag in files.Tags()["scalars"]
    }


def test_tensorboard_shows_every_step_with_the_tags_of_trl_and_torchtitan(run_of: Any) -> None:
    run = run_of()
    track(run, range(1, 4))
    shown = charts(run)
    assert shown["train/loss"] == [(1, 2.5), (2, 2.5), (3, 2.5)]
    assert {tag: values[0][1] for tag, values in shown.items()} == pytest.approx(
        {
            "train/loss": 2.5,
            "train/learning_rate": 1e-4,
            "train/rewards/accuracies": 0.75,
            "throughput(tps)": 1000,
            "mfu(%)": 50,
            "memory/max_active(GiB)": 3,
            "time_metrics/data_loading(%)": 25,
            "eval/loss": 3,
        }
    )


def test_steps_that_the_next_attempt_repeats_are_shown_once(run_of: Any) -> None:
    track(run_of(), range(1, 6))
    run = run_of(attempt=2)
    track(run, range(4, 8))
    assert [step for step, _ in charts(run)["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]


def test_nothing_is_written_for_a_run_without_steps(run_of: Any) -> None:
    run = run_of()
    assert track(run, range(0)) < 5
    assert not (tracking.report_folder(run) / "tensorboard").exists()


def test_wandb_keeps_an_offline_run_in_the_report_folder(run_of: Any) -> None:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    run = run_of({"wandb": {"project": "tests", "offline": True}})
    track(run, range(1, 4))
    (file,) = tracking.report_folder(run).glob("wandb/offline-run-*/run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(file))
    found: list[dict[str, Any]] = []
    project = ""
    while data := store.scan_data():
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            project = record.run.project
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            keys = [".".join(item.nested_key) or item.key for item in items]
            found.append(dict(zip(keys, (json.loads(i.value_json) for i in items), strict=True)))
    store.close()
    assert project == "tests"
    assert [(line["_step"], line["train/loss"]) for line in found] == [(1, 2.5), (2, 2.5), (3, 2.5)]


def test_mlflow_keeps_a_run_in_the_report_folder_for_all_attempts(run_of: Any) -> None:
    from mlflow import MlflowClient

    tracking_spec = {"mlflow": {"experiment": "tests"}}
    track(run_of(tracking_spec), range(1, 3))
    run = run_of(tracking_spec, attempt=2)
    track(run, range(3, 5))
    client = MlflowClient(tracking_uri=(tracking.report_folder(run) / "mlflow").absolute().as_uri())
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [
        (step, 2.5) for step in range(1, 5)
    ]
    assert found.data.metrics["mfu_percent"] == 50


INFO = {
    "run_id": "r1",
    "run_uuid": "r1",
    "experiment_id": "7",
    "status": "RUNNING",
    "artifact_uri": "",
}


class Server:
    """An MLflow server on loopback that records its requests, refuses them, hangs, or redirects."""

    def __init__(self, behaviour: str = "") -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.closed = threading.Event()
        server = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "/runs/get?" in self.path:
                    self.answer(200, {"run": {"info": INFO, "data": {}}})
                else:
                    error = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}
                    self.answer(404, error)

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size) or b"{}")
                path = self.path.rsplit("/mlflow/", 1)[-1]
                server.requests.append((path, body, self.headers.get("Authorization")))
                self.answer(200, server.answers(path))

            def answer(self, status: int, body: dict[str, Any]) -> None:
                if behaviour == "hang":
                    server.closed.wait(60)
                    return
                if behaviour == "refuse":
                    message = f"no entry for {self.headers.get('Authorization')}"
                    status, body = 403, {"error_code": "PERMISSION_DENIED", "message": message}
                if behaviour == "redirect":
                    status = 307
                data = json.dumps(body).encode()
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Log no request."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answers(self, path: str) -> dict[str, Any]:
        return {
            "experiments/create": {"experiment_id": "7"},
            "runs/search": {"runs": []},
            "runs/create": {"run": {"info": INFO, "data": {}}},
            "runs/update": {"run_info": INFO},
        }.get(path, {})

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(getattr(request, "param", ""))
    yield server
    server.close()


def test_mlflow_server_is_sent_every_step_with_the_jobs_token(
    run_of: Any, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    track(run_of({"mlflow": {"experiment": "tests", "trackingUri": server.url}}), range(1, 4))
    sent = [body for path, body, _ in server.requests if path == "runs/log-batch"]
    values = [
        (metric["step"], metric["value"])
        for body in sent
        for metric in body["metrics"]
        if metric["key"] == "train/loss"
    ]
    assert values == [(1, 2.5), (2, 2.5), (3, 2.5)]
    assert {bearer for _, _, bearer in server.requests} == {f"Bearer {TOKEN}"}
    assert server.requests[-1][:1] == ("runs/update",)
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize("server", ["refuse"], indirect=True)
def test_a_tracker_that_fails_is_logged_once_and_stops_nothing(
    run_of: Any, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    run = run_of({"mlflow": {"experiment": "tests", "trackingUri": server.url}})
    track(run, range(1, 4))
    logged = "".join(capfd.readouterr())
    assert logged.count("Tracker failed") == logged.count("tracker=MLflow") == 1
    assert TOKEN not in logged
    assert len(charts(run)["train/loss"]) == 3


@pytest.mark.parametrize("server", ["redirect"], indirect=True)
def test_a_tracker_does_not_lead_to_a_metadata_service(
    run_of: Any, server: Server, capfd: Any
) -> None:
    track(run_of({"mlflow": {"experiment": "tests", "trackingUri": server.url}}), range(1, 4))
    assert "A connection to 169.254.169.254 was refused" in "".join(capfd.readouterr())


@pytest.mark.parametrize("server", ["hang"], indirect=True)
@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_tracker_that_hangs_delays_the_end_by_a_few_seconds_only(
    run_of: Any,
    server: Server,
    tracker: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    capfd: Any,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", TOKEN)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    tracking_spec = {
        "mlflow": {"mlflow": {"experiment": "tests", "trackingUri": server.url}},
        "wandb": {"wandb": {"project": "tests"}},
    }[tracker]
    run = run_of(tracking_spec)
    started = time.monotonic()
    with tracking.run_trackers(lambda: True):
        history = History(tracking.history_path(run), rank=0)
        for step in range(1, 4):
            history.append(step=step, **STEP)
        # Wait for TensorBoard; the other tracker never finishes.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not event_bytes(run):
            time.sleep(0.05)
        ended = time.monotonic()
    assert time.monotonic() - ended < tracking.STOP_SECONDS + 2
    assert ended - started < 30
    logged = caplog.text + "".join(capfd.readouterr())
    assert logged.count("Trackers did not finish in time") == 1
    assert TOKEN not in logged


@pytest.mark.parametrize("name", ["TensorBoard", "W&B", "MLflow"])
def test_a_tracker_waits_while_another_one_imports_its_library(run_of: Any, name: str) -> None:
    offline = {"wandb": {"project": "tests", "offline": True}, "mlflow": {"experiment": "tests"}}
    run = run_of(offline)
    made = threading.Event()

    def make() -> None:
        tracking.tracker_factories(run)[name]().close()
        made.set()

    with tracking.IMPORT_LOCK:
        threading.Thread(target=make).start()
        assert not made.wait(1)
    assert made.wait(60)


def event_bytes(run: RunConfig) -> int:
    files = (tracking.report_folder(run) / "tensorboard").glob("events*")
    return sum(file.stat().st_size for file in files)


def test_keys_in_an_error_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", TOKEN)
    error = RuntimeError(f"https://user:secret@host/ refused {TOKEN}\nmore")
    assert tracking.redact_secrets(error) == "https://***@host/ refused ***"


def test_a_line_is_read_only_when_it_is_complete(tmp_path: Path) -> None:
    path, ended = tmp_path / "history", threading.Event()
    path.write_bytes(b'{"step": 1}\n{"st')
    lines = tracking.tail_lines(path, ended)
    assert next(lines) == {"step": 1}
    with path.open("ab") as file:
        file.write(b'ep": 2}\n')
    assert next(lines) == {"step": 2}
    ended.set()
    assert list(lines) == []

"""Sends the metrics of a run to trackers: TensorBoard files always, W&B and MLflow on request.

A separate process follows the history file of the attempt, with one thread per tracker. So a
tracker that fails, hangs or takes half a second to import neither stops nor slows down training;
its failure is logged once. The first process of the first pod starts it and closes its standard
input when training has ended. It imports a tracker's library only after rank 0 has written the
first step.
"""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from finetune_api.finetunejob import MLflow, WandB
from finetune_api.protocol import RUN_CONFIG_PATH
from finetune_api.run_config import RunConfig

from finetune_trainer.runtime.connection_guard import guard_connections
from finetune_trainer.runtime.logs import configure_logging
from finetune_trainer.sources.address import public_spec

log = logging.getLogger("finetune")

POLL_SECONDS = 0.5
FINISH_SECONDS = 20.0
"""How long trackers may take to send the remaining steps after training has ended."""
STOP_SECONDS = 3.0
"""The same after SIGTERM to the pod."""
SECRETS = (
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
"""Environment variables whose values are never logged."""
CHART_NAMES: Mapping[str, tuple[str, float]] = {
    "eval_loss": ("eval/loss", 1),
    "tokens_per_second": ("throughput(tps)", 1),
    "mfu": ("mfu(%)", 100),
    "peak_memory_bytes": ("memory/max_active(GiB)", 2**-30),
    "data_wait_share": ("time_metrics/data_loading(%)", 100),
}
"""Chart name and factor: those of torchtitan, and TRL's for the held-out loss. Other metrics have
TRL's names already, to which TRL adds train/."""
NOT_CHARTED = ("step", "time")
IMPORT_LOCK = threading.Lock()
"""Held while a thread imports a tracker's library. Two threads that import packages with cyclic
imports, such as NumPy, at the same time may see a package that is only half initialised."""

Metrics = dict[str, float]


class Tracker(Protocol):
    """A destination of charts; its methods may block and raise, so each tracker has a thread."""

    def log_step(self, step: int, at: float, metrics: Metrics) -> None:
        """Record the chart values of a step; `at` is a Unix time in seconds."""

    def close(self) -> None:
        """Send what is still buffered, then end the tracker's run."""


class TensorBoard:
    """Event files below report/tensorboard, one for each attempt."""

    def __init__(self, run: RunConfig) -> None:
        with IMPORT_LOCK:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._file = EventFileWriter(str(report_folder(run) / "tensorboard"), flush_secs=10)
        self._is_first = True

    def log_step(self, step: int, at: float, metrics: Metrics) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._is_first:
            # Hides the steps that an earlier attempt did after its last checkpoint.
            start = SessionLog(status=SessionLog.START)
            self._file.add_event(Event(wall_time=at, step=step, session_log=start))
            self._is_first = False
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._file.add_event(Event(wall_time=at, step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()


class WeightsAndBiases:
    """One run of W&B for all attempts of a job."""

    def __init__(self, run: RunConfig, settings: WandB) -> None:
        with IMPORT_LOCK:
            import wandb

        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=run.job.name,
            id=run.job.uid,
            resume="allow",
            mode="offline" if settings.offline else "online",
            dir=report_folder(run),
            config={
                "spec": public_spec(run.raw_spec),
                "plan": run.plan.to_wire() if run.plan else None,
            },
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )

    def log_step(self, step: int, at: float, metrics: Metrics) -> None:
        self._run.log({**metrics, "_timestamp": at}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflowRun:
    """One run of MLflow for all attempts of a job."""

    TAG = "finetune.job_uid"

    def __init__(self, run: RunConfig, settings: MLflow) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        with IMPORT_LOCK:
            from mlflow import MlflowClient

        folder = (report_folder(run) / "mlflow").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=settings.tracking_uri or folder)
        found = self._client.get_experiment_by_name(settings.experiment)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(settings.experiment)
        )
        is_this_job = f"tags.`{self.TAG}` = '{run.job.uid}'"
        runs = self._client.search_runs([experiment], filter_string=is_this_job, max_results=1)
        if runs:
            self._id = runs[0].info.run_id
        else:
            tags = {self.TAG: run.job.uid}
            created = self._client.create_run(experiment, tags=tags, run_name=run.job.name)
            self._id = created.info.run_id

    def log_step(self, step: int, at: float, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        milliseconds = int(at * 1000)
        batch = [
            Metric(mlflow_metric_name(name), value, milliseconds, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=batch)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def mlflow_metric_name(name: str) -> str:
    """Without the characters that MLflow refuses: `mfu(%)` becomes `mfu_percent`."""
    return re.sub(r"[^\w./ -]", "", name.replace("(", "_").replace("%", "percent"))


def report_folder(run: RunConfig) -> Path:
    return Path(run.paths.job) / "report"


def history_path(run: RunConfig) -> Path:
    """The file to which rank 0 appends every step."""
    return report_folder(run) / f"train-{run.attempt}.jsonl"


def chart_values(line: Mapping[str, Any]) -> Metrics:
    """A line of the history with the chart names and units of TRL and torchtitan."""
    values = {}
    for name, value in line.items():
        if name not in NOT_CHARTED and isinstance(value, (int, float)):
            chart, factor = CHART_NAMES.get(name, (f"train/{name}", 1))
            values[chart] = float(value) * factor
    return values


def tail_lines(path: Path, ended: threading.Event) -> Iterator[dict[str, Any]]:
    """Every complete line of a growing file, until `ended` is set and the file is read."""
    position, rest = 0, b""
    while True:
        is_last_read = ended.is_set()
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                new = file.read()
            position += len(new)
            *lines, rest = (rest + new).split(b"\n")
            yield from (json.loads(line) for line in lines)
        if is_last_read:
            return
        ended.wait(POLL_SECONDS)


def run_tracker(
    name: str, make_tracker: Callable[[], Tracker], path: Path, ended: threading.Event
) -> None:
    """Send all steps to one tracker; the first exception ends it and is logged."""
    tracker = None
    try:
        for line in tail_lines(path, ended):
            tracker = tracker or make_tracker()
            tracker.log_step(line["step"], line["time"], chart_values(line))
        if tracker:
            tracker.close()
    except Exception as error:
        log.warning(
            "Tracker failed, it gets no further steps of this attempt",
            extra={
                "tracker": name,
                "error_type": type(error).__name__,
                "error": redact_secrets(error),
            },
        )


def redact_secrets(error: Exception) -> str:
    """First line of an error, without the values of SECRETS and without credentials in URLs."""
    text = str(error).strip().split("\n", 1)[0]
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return re.sub(r"://[^/@\s]*@", "://***@", text)[:300]


def tracker_factories(run: RunConfig) -> dict[str, Callable[[], Tracker]]:
    """Functions that make the job's trackers, by the tracker's name."""
    tracking = run.spec.tracking
    factories: dict[str, Callable[[], Tracker]] = {"TensorBoard": lambda: TensorBoard(run)}
    if tracking and (wandb := tracking.wandb):
        factories["W&B"] = lambda: WeightsAndBiases(run, wandb)
    if tracking and (mlflow := tracking.mlflow):
        factories["MLflow"] = lambda: MLflowRun(run, mlflow)
    return factories


@contextmanager
def run_trackers(is_stopping: Callable[[], bool]) -> Iterator[None]:
    """Run the tracking process while the body trains.

    At the end, wait for the trackers, but at most STOP_SECONDS if the pod `is_stopping` and
    FINISH_SECONDS otherwise.
    """
    command = [sys.executable, "-m", "finetune_trainer.training.tracking"]
    # In its own session: a signal to this process group must not end it before the last step.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        timeout = STOP_SECONDS if is_stopping() else FINISH_SECONDS
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.warning(
                "Trackers did not finish in time, they lack the last steps",
                extra={"timeout_seconds": timeout},
            )
            process.kill()
            process.wait()


def main() -> None:
    """Run the trackers of the run file's attempt until standard input is closed."""
    configure_logging()
    guard_connections(os.environ, may_use_loopback=True)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # MLflow recommends a database instead of files.
    warnings.filterwarnings("ignore", category=FutureWarning)
    path = Path(os.environ.get("FINETUNE_RUN_CONFIG", RUN_CONFIG_PATH))
    run = RunConfig.model_validate_json(path.read_bytes())
    ended = threading.Event()
    threads = [
        threading.Thread(
            target=run_tracker, args=(name, make, history_path(run), ended), daemon=True
        )
        for name, make in tracker_factories(run).items()
    ]
    for thread in threads:
        thread.start()
    sys.stdin.buffer.read()
    ended.set()
    deadline = time.monotonic() + FINISH_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    # An orderly exit would wait for the threads of libraries whose servers do not answer.
    os._exit(0)


if __name__ == "__main__":
    main()

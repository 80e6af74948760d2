"""What the outside is told of a run's course: TensorBoard files always, W&B and MLflow on request.

A process of its own follows the attempt's history file, and in it a thread for each tracker. So a
tracker that fails, hangs or imports half a second of libraries neither stops nor slows training;
its failure is told once in the log. The train stage's first process starts it on the first pod,
and says that training is over by closing its standard input. Nothing is imported before the first
step has been written.
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
from finetune_api.run import RUN_CONFIG_PATH, RunConfig

log = logging.getLogger("finetune")

POLL_SECONDS = 0.5
FINISH_SECONDS = 20.0
"""How long trackers may take to send what is left when training has ended."""
STOP_SECONDS = 3.0
"""The same when the pod is asked to go."""
SECRETS = (
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
CHART_NAMES: Mapping[str, tuple[str, float]] = {
    "eval_loss": ("eval/loss", 1),
    "tokens_per_second": ("throughput(tps)", 1),
    "mfu": ("mfu(%)", 100),
    "peak_memory_bytes": ("memory/max_active(GiB)", 2**-30),
    "data_wait_share": ("time_metrics/data_loading(%)", 100),
}
"""Names and units of torchtitan, and of TRL for the held-out loss; all others are TRL's too, which
puts train/ before them."""
NOT_CHARTED = ("step", "time")

Values = dict[str, float]


class Tracker(Protocol):
    """Something that charts a run."""

    def add(self, step: int, at: float, values: Values) -> None:
        """The values of a step, at a Unix time."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """Event files below report/tensorboard, one more with every attempt."""

    def __init__(self, run: RunConfig) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._file = EventFileWriter(str(report_folder(run) / "tensorboard"), flush_secs=10)
        self._fresh = True

    def add(self, step: int, at: float, values: Values) -> None:
        """One event."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._fresh:
            # Steps that an earlier attempt did after its last checkpoint are not shown.
            start = SessionLog(status=SessionLog.START)
            self._file.add_event(Event(wall_time=at, step=step, session_log=start))
            self._fresh = False
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._file.add_event(Event(wall_time=at, step=step, summary=Summary(value=shown)))

    def close(self) -> None:
        """Write the file to its end."""
        self._file.close()


class WeightsAndBiases:
    """One run of W&B for all attempts of a job."""

    def __init__(self, run: RunConfig, settings: WandB) -> None:
        import wandb

        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=run.job.name,
            id=run.job.uid,
            resume="allow",
            mode="offline" if settings.offline else "online",
            dir=report_folder(run),
            config={"spec": run.raw_spec, "plan": run.plan.to_wire() if run.plan else None},
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )

    def add(self, step: int, at: float, values: Values) -> None:
        """Log."""
        self._run.log({**values, "_timestamp": at}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MLflowRun:
    """One run of MLflow for all attempts of a job."""

    TAG = "finetune.job_uid"

    def __init__(self, run: RunConfig, settings: MLflow) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        from mlflow import MlflowClient

        folder = (report_folder(run) / "mlflow").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=settings.tracking_uri or folder)
        found = self._client.get_experiment_by_name(settings.experiment)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(settings.experiment)
        )
        mine = f"tags.`{self.TAG}` = '{run.job.uid}'"
        runs = self._client.search_runs([experiment], filter_string=mine, max_results=1)
        if runs:
            self._id = runs[0].info.run_id
        else:
            tags = {self.TAG: run.job.uid}
            made = self._client.create_run(experiment, tags=tags, run_name=run.job.name)
            self._id = made.info.run_id

    def add(self, step: int, at: float, values: Values) -> None:
        """One batch of metrics."""
        from mlflow.entities import Metric

        when = int(at * 1000)
        metrics = [
            Metric(mlflow_metric_name(name), value, when, step) for name, value in values.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._id)


def mlflow_metric_name(name: str) -> str:
    """A name as MLflow takes it: `mfu(%)` becomes `mfu_percent`."""
    return re.sub(r"[^\w./ -]", "", name.replace("(", "_").replace("%", "percent"))


def report_folder(run: RunConfig) -> Path:
    """The job's report folder."""
    return Path(run.paths.job) / "report"


def history_path(run: RunConfig) -> Path:
    """The file that rank 0 appends every step to."""
    return report_folder(run) / f"train-{run.attempt}.jsonl"


def chart_values(line: Mapping[str, Any]) -> Values:
    """A line of the history by the names of TRL and torchtitan."""
    found = {}
    for name, value in line.items():
        if name not in NOT_CHARTED and isinstance(value, (int, float)):
            shown, factor = CHART_NAMES.get(name, (f"train/{name}", 1))
            found[shown] = float(value) * factor
    return found


def tail_lines(path: Path, over: threading.Event) -> Iterator[dict[str, Any]]:
    """Every whole line of a file that grows, until it is over and read to its end."""
    position, rest = 0, b""
    while True:
        last = over.is_set()
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                new = file.read()
            position += len(new)
            *whole, rest = (rest + new).split(b"\n")
            yield from (json.loads(line) for line in whole)
        if last:
            return
        over.wait(POLL_SECONDS)


def run_tracker(name: str, make: Callable[[], Tracker], path: Path, over: threading.Event) -> None:
    """Tell one tracker all of a run; what it raises ends it, and is logged once."""
    tracker = None
    try:
        for line in tail_lines(path, over):
            tracker = tracker or make()
            tracker.add(line["step"], line["time"], chart_values(line))
        if tracker:
            tracker.close()
    except Exception as error:
        kind = type(error).__name__
        log.warning("%s is told no more of this run: %s: %s", name, kind, redact_secrets(error))


def redact_secrets(error: Exception) -> str:
    """An error's first line, without the keys of trackers and what stands before @ in a URL."""
    text = str(error).strip().split("\n", 1)[0]
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return re.sub(r"://[^/@\s]*@", "://***@", text)[:300]


def tracker_factories(run: RunConfig) -> dict[str, Callable[[], Tracker]]:
    """Makers of the job's trackers, by name."""
    asked = run.spec.tracking
    found: dict[str, Callable[[], Tracker]] = {"TensorBoard": lambda: TensorBoard(run)}
    if asked and (wandb := asked.wandb):
        found["W&B"] = lambda: WeightsAndBiases(run, wandb)
    if asked and (mlflow := asked.mlflow):
        found["MLflow"] = lambda: MLflowRun(run, mlflow)
    return found


@contextmanager
def run_trackers(run: RunConfig, stopped: Callable[[], bool]) -> Iterator[None]:
    """Track while the body trains; at its end wait for the trackers, but not for long."""
    command = [sys.executable, "-m", "finetune_trainer.training.tracking"]
    # A signal to this process's group must not end it before the last step.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS if stopped() else FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("a tracker did not finish in time; it lacks the last steps")
            process.kill()
            process.wait()


def main() -> None:
    """Follow the attempt of the run file until standard input is closed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # MLflow would rather have a database than files.
    warnings.filterwarnings("ignore", category=FutureWarning)
    path = Path(os.environ.get("FINETUNE_RUN_CONFIG", RUN_CONFIG_PATH))
    run = RunConfig.model_validate_json(path.read_bytes())
    over = threading.Event()
    threads = [
        threading.Thread(
            target=run_tracker, args=(name, make, history_path(run), over), daemon=True
        )
        for name, make in tracker_factories(run).items()
    ]
    for thread in threads:
        thread.start()
    sys.stdin.buffer.read()
    over.set()
    deadline = time.monotonic() + FINISH_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    # Libraries would wait for servers that do not answer.
    os._exit(0)


if __name__ == "__main__":
    main()

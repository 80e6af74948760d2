"""What Prometheus reads of the operator itself.

The names of queue and reconcile are controller-runtime's, so that dashboards and alerts made for
any Go operator show this one too. No series carries the name of a job: that would grow without
bound; per-job facts are in the objects' status.
"""

import time
from collections.abc import Callable, Iterable
from typing import get_args

from finetune_api.finetunejob import Phase
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

from finetune_operator.decision import Key, Manifest

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class QueueMetrics:
    """workqueue_*: how many keys come, wait and run."""

    def __init__(self, registry: CollectorRegistry) -> None:
        label = ["name"]
        self._depth = Gauge("workqueue_depth", "Keys that wait", label, registry=registry)
        self._adds = Counter("workqueue_adds", "Keys added", label, registry=registry)
        self._retries = Counter(
            "workqueue_retries", "Keys added after an error", label, registry=registry
        )
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Time from being added to being taken",
            label,
            buckets=BUCKETS,
            registry=registry,
        )
        self._worked = Histogram(
            "workqueue_work_duration_seconds",
            "Time that a key was worked on",
            label,
            buckets=BUCKETS,
            registry=registry,
        )
        self.longest = Gauge(
            "workqueue_longest_running_processor_seconds",
            "How long the oldest run takes so far",
            registry=registry,
        )

    # One queue holds all kinds: its depth is one number, the rest is told apart by kind.

    def depth(self, _key: Key, depth: int) -> None:
        """So many keys wait now."""
        self._depth.labels("finetune").set(depth)

    def added(self, key: Key) -> None:
        """A key was added that did not wait already."""
        self._adds.labels(key.kind).inc()

    def retried(self, key: Key) -> None:
        """A key was added after an error."""
        self._retries.labels(key.kind).inc()

    def taken(self, key: Key, waited: float, depth: int) -> None:
        """A worker took a key that had waited so many seconds."""
        self._waited.labels(key.kind).observe(waited)
        self._depth.labels("finetune").set(depth)

    def finished(self, key: Key, worked: float) -> None:
        """A worker is through with a key after so many seconds."""
        self._worked.labels(key.kind).observe(worked)


class Metrics:
    """Everything that /metrics shows."""

    def __init__(self) -> None:
        # A second series for each, of use to nobody here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.queue = QueueMetrics(self.registry)
        self.reconciles = Counter(
            "controller_runtime_reconcile",
            "Reconciles by kind and result",
            ["controller", "result"],
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "controller_runtime_reconcile_errors",
            "Reconciles that failed",
            ["controller"],
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Time of a reconcile, its writes included",
            ["controller"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.writes = Counter(
            "finetune_api_writes",
            "Writes to the API server",
            ["verb", "kind", "result"],
            registry=self.registry,
        )
        self.repairs = Counter(
            "finetune_cache_repairs",
            "Differences between the cache and a list that the watch had missed",
            ["kind"],
            registry=self.registry,
        )
        self.handover = Histogram(
            "finetune_stage_handover_seconds",
            "From the end of a stage's pods, as seen here, to the next stage's Job",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.handovers = Handover(self.handover)
        self.leader = Gauge(
            "leader_election_master_status", "1 while this process leads", registry=self.registry
        )

    def watch_age(self, age: Callable[[], float]) -> None:
        """Show how many seconds ago the watch last proved to be alive."""
        gauge = Gauge(
            "finetune_watch_age_seconds",
            "Time since the watch echoed a renewal of our Lease",
            registry=self.registry,
        )
        gauge.set_function(age)

    def jobs(self, jobs: Callable[[], Iterable[Manifest]]) -> None:
        """Show how many FineTuneJobs are in which phase, counted when asked."""
        self.registry.register(_JobsByPhase(jobs))

    def text(self) -> bytes:
        """All of it in the Prometheus text format."""
        return generate_latest(self.registry)


class Handover:
    """Measures from the end of one stage's pods to the creation of the next stage's Job."""

    def __init__(self, seconds: Histogram) -> None:
        self._seconds = seconds
        self._ended: dict[tuple[str, str], tuple[str, float]] = {}

    def ended(self, namespace: str, job: str, stage: str) -> None:
        """A pod of that stage was just seen to have ended."""
        self._ended[namespace, job] = stage, time.monotonic()

    def began(self, namespace: str, job: str, stage: str) -> None:
        """A Job of that stage was just created; a retry of the same stage does not count."""
        before, at = self._ended.pop((namespace, job), (stage, 0.0))
        if before != stage:
            self._seconds.observe(time.monotonic() - at)

    def forget(self, namespace: str, job: str) -> None:
        """The job is gone."""
        self._ended.pop((namespace, job), None)


class _JobsByPhase:
    def __init__(self, jobs: Callable[[], Iterable[Manifest]]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterable[GaugeMetricFamily]:
        counts = dict.fromkeys(get_args(Phase), 0)
        for job in self._jobs():
            phase = (job.get("status") or {}).get("phase") or "Pending"
            counts[phase] = counts.get(phase, 0) + 1
        family = GaugeMetricFamily("finetune_jobs", "FineTuneJobs by phase", labels=["phase"])
        for phase, count in counts.items():
            family.add_metric([phase], count)
        yield family

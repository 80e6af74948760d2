"""Metrics: what Prometheus scrapes from the operator itself, served by `health`.

The names of queue and reconcile metrics are controller-runtime's, so that dashboards and alerts
made for any Go operator work with this one. No series carries the name of a job: their number
would grow without bound; facts about one job are in its status.
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
    """workqueue_*: how many keys are added, wait and run."""

    def __init__(self, registry: CollectorRegistry) -> None:
        label = ["name"]
        self._depth = Gauge(
            "workqueue_depth", "Keys that wait for a worker", label, registry=registry
        )
        self._adds = Counter("workqueue_adds", "Keys added to the queue", label, registry=registry)
        self._retries = Counter(
            "workqueue_retries", "Keys added after an error", label, registry=registry
        )
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Seconds that a key waits for a worker",
            label,
            buckets=BUCKETS,
            registry=registry,
        )
        self._worked = Histogram(
            "workqueue_work_duration_seconds",
            "Seconds that one run of a key takes",
            label,
            buckets=BUCKETS,
            registry=registry,
        )
        self.longest_running = Gauge(
            "workqueue_longest_running_processor_seconds",
            "Seconds that the oldest run has taken so far",
            registry=registry,
        )

    # One queue holds all kinds: its depth is one number, everything else is counted by kind.

    def set_depth(self, depth: int) -> None:
        self._depth.labels("finetune").set(depth)

    def count_add(self, key: Key) -> None:
        """Count a key that did not wait already."""
        self._adds.labels(key.kind).inc()

    def count_retry(self, key: Key) -> None:
        """Count a key that is added after an error."""
        self._retries.labels(key.kind).inc()

    def observe_get(self, key: Key, waited: float, depth: int) -> None:
        """A worker got a key that had waited for `waited` seconds."""
        self._waited.labels(key.kind).observe(waited)
        self._depth.labels("finetune").set(depth)

    def observe_done(self, key: Key, worked: float) -> None:
        """A run of a key took `worked` seconds."""
        self._worked.labels(key.kind).observe(worked)


class Metrics:
    """Everything that /metrics exports."""

    def __init__(self) -> None:
        # They double the number of series, and no dashboard reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.queue = QueueMetrics(self.registry)
        self.reconciles = Counter(
            "controller_runtime_reconcile",
            "Reconciles by kind of key and result",
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
            "Seconds that a reconcile takes, including its writes",
            ["controller"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.writes = Counter(
            "finetune_api_writes",
            "Writes to the API server by verb, kind and result",
            ["verb", "kind", "result"],
            registry=self.registry,
        )
        self.repairs = Counter(
            "finetune_cache_repairs",
            "Objects that a watch missed and a list corrected in the cache",
            ["kind"],
            registry=self.registry,
        )
        self.handovers = HandoverTimer(
            Histogram(
                "finetune_stage_handover_seconds",
                "Seconds from seeing the end of a stage's pods to creating the next stage's Job",
                buckets=BUCKETS,
                registry=self.registry,
            )
        )
        self.leader = Gauge(
            "leader_election_master_status", "1 while this process leads", registry=self.registry
        )

    def export_watch_age(self, age: Callable[[], float]) -> None:
        """Export how many seconds ago the watch last delivered a renewal of our Lease."""
        gauge = Gauge(
            "finetune_watch_age_seconds",
            "Seconds since the watch delivered a renewal of the operator's own Lease",
            registry=self.registry,
        )
        gauge.set_function(age)

    def export_jobs_by_phase(self, jobs: Callable[[], Iterable[Manifest]]) -> None:
        """Export how many FineTuneJobs are in each phase, counted at every scrape."""
        self.registry.register(_JobsByPhase(jobs))

    def render(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self.registry)


class HandoverTimer:
    """Measures the time from the end of one stage's pods to the next stage's Job."""

    def __init__(self, seconds: Histogram) -> None:
        self._seconds = seconds
        self._stage_ends: dict[tuple[str, str], tuple[str, float]] = {}

    def record_stage_end(self, namespace: str, job: str, stage: str) -> None:
        """An event just showed that a pod of that stage has ended."""
        self._stage_ends[namespace, job] = stage, time.monotonic()

    def record_stage_start(self, namespace: str, job: str, stage: str) -> None:
        """A Job of that stage was just created; a retry of the same stage does not count."""
        before, at = self._stage_ends.pop((namespace, job), (stage, 0.0))
        if before != stage:
            self._seconds.observe(time.monotonic() - at)

    def forget_job(self, namespace: str, job: str) -> None:
        self._stage_ends.pop((namespace, job), None)


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

"""Watches the pods of a namespace and remembers when each was first seen and when it ended.

Times are this process's own clock at the arrival of the watch event, for starts and ends alike,
so that a difference of two of them needs no synchronised clocks.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any, Self

from kubernetes import client, watch
from urllib3.exceptions import HTTPError

JOB_LABEL = "finetune.dev/job-name"
STAGE_LABEL = "finetune.dev/stage"
ENDPOINT_LABEL = "finetune.dev/endpoint"
ORDER = ("prepare", "train", "evaluate", "export", "serve")


@dataclass
class PodTimes:
    """One pod as the watch saw it."""

    name: str
    labels: dict[str, str]
    created: float
    ended: float | None = None
    node: str | None = None


class Watching:
    """A context in which every event about the objects of one list is recorded."""

    def __init__(self, listing: Callable[..., Any], *arguments: str) -> None:
        """`listing(*arguments)` is the call of the client library that lists them."""
        self._listing, self._arguments = listing, arguments
        self._stop = threading.Event()
        self._watch = watch.Watch()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.stop()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for event in self._watch.stream(
                    self._listing, *self._arguments, timeout_seconds=10, _request_timeout=20
                ):
                    self._record(event["raw_object"])
            except (client.ApiException, HTTPError, JSONDecodeError):
                # The last also when the API server dies in the middle of a line.
                self._stop.wait(0.2)

    def _record(self, found: dict[str, Any]) -> None:
        raise NotImplementedError


class PodHistory(Watching):
    """A context in which every pod event of a namespace is remembered."""

    def __init__(self, api: client.CoreV1Api, namespace: str) -> None:
        super().__init__(api.list_namespaced_pod, namespace)
        self.pods: dict[str, PodTimes] = {}

    def _record(self, found: dict[str, Any]) -> None:
        pod, now = found, time.monotonic()
        meta = pod["metadata"]
        known = self.pods.setdefault(
            meta["uid"], PodTimes(meta["name"], meta.get("labels", {}), created=now)
        )
        known.node = pod.get("spec", {}).get("nodeName") or known.node
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed") and known.ended is None:
            known.ended = now

    def of(self, job: str, stage: str) -> list[PodTimes]:
        """Pods of one stage of a job, all attempts."""
        return [
            pod
            for pod in self.pods.values()
            if pod.labels.get(JOB_LABEL) == job and pod.labels.get(STAGE_LABEL) == stage
        ]

    def handovers(self, job: str, endpoint: str | None = None) -> dict[str, float]:
        """Seconds from the end of a stage's last pod to the next stage's first pod."""
        out: dict[str, float] = {}
        for stage, following in itertools.pairwise(ORDER):
            before = self.of(job, stage)
            after = self.of(job, following)
            if following == "serve" and endpoint is not None:
                after = [p for p in self.pods.values() if p.labels.get(ENDPOINT_LABEL) == endpoint]
            ends = [pod.ended for pod in before]
            if not after or not ends or None in ends:
                continue
            last = max(end for end in ends if end is not None)
            out[f"{stage} -> {following}"] = min(pod.created for pod in after) - last
        return out

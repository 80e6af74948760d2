"""Why the API server refuses the pods of a Job: a quota, a LimitRange, admission.

The Job controller reports that in events on the Job and nowhere else. Nothing is decided by their
text, which a message repeats.
"""

import re

from finetune_operator.decision import EventQuery, HttpResponse, Manifest
from finetune_operator.manifest import parse_time, read_text

FAILED_CREATE = "FailedCreate"
_PREFIXES = re.compile(r"^(\(combined from similar events\): )?(Error creating: )?")


def refusal_query(job: Manifest) -> EventQuery:
    """The query for the events about a Job that report refused pods."""
    meta = job["metadata"]
    return EventQuery(query_id(job), meta["namespace"], meta["uid"], FAILED_CREATE)


def query_id(job: Manifest) -> str:
    """The id under which the View has the response."""
    return f"pod-refusals/{job['metadata']['uid']}"


def read_refusal(job: Manifest, response: HttpResponse | None) -> str:
    """The newest refusal, without the random part of the pod's name, which changes with every try;
    empty where there is none, or it is not known."""
    events = response.body if response is not None and response.status == 200 else ()
    refusals = [
        (at, text)
        for event in events
        if (at := parse_time(_newest_time(event)))
        and (text := _PREFIXES.sub("", read_text(event.get("message"))))
    ]
    name = re.escape(job["metadata"]["name"])
    return re.sub(rf'"({name})-[^"]*"', r'"\1-…"', max(refusals, default=(None, ""))[1])


def _newest_time(event: Manifest) -> object:
    series = event.get("series") or {}
    return series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")

"""Any output of a pod and any edit of the status leave a valid plan: no traceback, no
status that JSON cannot hold."""

import copy
import functools
import json
import os
import sys
from typing import Any

import pytest
from finetune_api.progress import Progress
from finetune_operator.decision import HttpResponse
from finetune_operator.jobs.progress import (
    checkpoint_status,
    job_progress,
    progress_message,
    read_progress,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.jobs.test_progress import REPORTED
from tests.unit.jobs.world import START, World, failed, result, training

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1e308,
    sys.float_info.max,
    float("nan"),
    float("inf"),
    "",
    "\0",
    [],
]
VALUES = st.sampled_from([*ODD, {}, {"a": [1]}, "9" * 300, "\U0001f600"])
FIELDS = Progress.model_fields.values()
JUNK = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(REPORTED)), JUNK), st.booleans())
def test_any_answer_of_a_pod_is_tolerated(changes: dict[str, Any], bare: bool) -> None:
    world = World()
    world.run_until("train")
    (first, *_) = world.add_pods("glossary-train-1")
    body = changes if bare else {**REPORTED, **changes}
    request_id = f"progress/{first['metadata']['uid']}"
    world.responses[request_id] = HttpResponse(at=0, status=200, body=body)
    world.settle()
    assert world.status["phase"] == "Training"


@pytest.mark.parametrize("name", sorted(field.alias for field in FIELDS))
def test_any_number_that_a_pod_reports_is_tolerated(name: str) -> None:
    """What is shown of it is validated, and is within what the API server holds as a number."""
    for value in ODD:
        answer = HttpResponse(at=0, status=200, body={**REPORTED, name: value})
        progress = read_progress(answer, "train", 1)
        if progress is None:
            continue
        checkpoint = checkpoint_status(progress, None)
        wire = [job_progress(progress, None, START).to_wire(), checkpoint and checkpoint.to_wire()]
        json.dumps(wire, allow_nan=False)
        numbers = [n for each in wire for n in (each or {}).values() if isinstance(n, int)]
        assert all(abs(number) < 2**63 for number in numbers)
        assert len(progress_message(progress) or "") < 4096


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(json.loads(result("train")))), JUNK), st.text())
def test_any_termination_message_is_tolerated(changes: dict[str, Any], tail: str) -> None:
    world = World()
    world.run_until("train")
    message = json.dumps({**json.loads(result("train")), **changes}) + tail
    for pod in world.add_pods("glossary-train-1"):
        world.end_pod(pod, 0, message)
    world.settle()
    assert world.status["phase"] in ("Queued", "Evaluating", "Failed")


@pytest.mark.parametrize("number", [2**63, 10**400])
@pytest.mark.parametrize("where", ["model.layers", "data.trainSequences", "workspace.freeBytes"])
def test_a_result_that_no_status_can_hold_is_none(where: str, number: int) -> None:
    """Prepare reads these from what the user names, and the plan is made of them."""
    written = json.loads(result("prepare"))
    written["workspace"] = {"freeBytes": 10**12, "writeBytesPerSecond": 1e8}
    part, name = where.split(".")
    written[part][name] = number
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    world.end_pod(pod, 0, json.dumps(written))
    world.settle()
    assert world.status["failure"]["reason"] == "NoResult"


@pytest.mark.parametrize("time", ["", "soon", "2026-01-05", "12:00:00", "2026-01-05T12:00:00"])
@pytest.mark.parametrize("suspend", [False, True])
def test_invalid_times_in_the_status_are_tolerated(time: str, suspend: bool) -> None:
    world, _ = training()
    stages = [
        {**stage, "retryAt": time} if stage["name"] == "train" else stage
        for stage in world.status["stages"]
    ]
    world.set_status(world.job, startedAt=time, suspendedAt=time, stages=stages)
    world.edit(suspend=suspend, activeDeadlineSeconds=60)
    world.settle()
    assert world.status["phase"] == ("Suspended" if suspend else "Training")


LONG = st.sampled_from(
    ["", " ", "x" * 129, "y" * 257, "exceeded its limit " * 300, "\u2028" * 40_000]
)
"""Texts that the API server stores in the status of a pod as they are."""
CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["DisruptionTarget", "PodScheduled", "Ready"]),
            "status": st.sampled_from(["True", "False"]),
        },
        optional={
            "reason": LONG,
            "message": LONG,
            "lastTransitionTime": st.sampled_from(
                ["2026-01-05T12:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]
            ),
        },
    ),
    max_size=3,
)
STATES = st.one_of(
    st.fixed_dictionaries({"waiting": st.fixed_dictionaries({}, optional={"reason": LONG})}),
    st.fixed_dictionaries(
        {
            "waiting": st.fixed_dictionaries(
                {
                    "reason": st.sampled_from(["ErrImagePull", "CreateContainerError"]),
                    "message": LONG,
                }
            )
        }
    ),
    st.fixed_dictionaries(
        {
            "terminated": st.fixed_dictionaries(
                {"exitCode": st.sampled_from([0, 1, 64, 75, 76, 137, -(2**31), 2**31 - 1])},
                optional={
                    "reason": LONG,
                    "finishedAt": st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]),
                    "message": st.one_of(
                        LONG,
                        st.builds(
                            lambda reason, text: failed("train", reason, message=text, remedy=text),
                            LONG,
                            st.sampled_from(["", "z" * 4096, "z" * 4097]),
                        ),
                    ),
                },
            )
        }
    ),
)
STATUSES = st.fixed_dictionaries(
    {"phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"])},
    optional={
        "reason": st.one_of(LONG, st.sampled_from(["Evicted", "NodeLost"])),
        "message": LONG,
        "conditions": CONDITIONS,
        "containerStatuses": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["trainer", "proxy"]), "state": STATES}),
            max_size=2,
        ),
    },
)


@functools.cache
def started_gang() -> World:
    """A world with both pods of a gang, before the operator has seen them; to be copied."""
    world = World()
    world.run_until("train")
    world.add_pods("glossary-train-1")
    return world


@settings(max_examples=int(os.environ.get("FINETUNE_FUZZ", "200")), deadline=None)
@given(STATUSES, STATUSES, st.sampled_from([0, 30, 700]), st.booleans())
def test_any_status_of_a_pod_is_tolerated(
    first: dict[str, Any], second: dict[str, Any], seconds: int, is_deleted: bool
) -> None:
    """The status of the job and its events stay within what the API server takes."""
    world = copy.deepcopy(started_gang())
    pods = world.pods("glossary-train-1")
    for pod, status in zip(pods, (first, second), strict=True):
        world.replace_status(pod, status)
        if is_deleted:
            world.mark_deleted(pod, 30)
    world.settle()
    world.tick(seconds)
    world.settle()
    assert all(len(event.reason) <= 128 and len(event.message) <= 1024 for event in world.events)

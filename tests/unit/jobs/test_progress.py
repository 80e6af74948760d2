"""Progress on its way from a pod to the status."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from finetune_operator.decision import HttpRequest, HttpResponse
from finetune_operator.jobs.progress import format_duration, poll_interval, progress_request

from tests.unit.jobs.world import World

REPORTED: dict[str, Any] = {
    "stage": "train",
    "attempt": 1,
    "message": "training",
    "step": 12,
    "totalSteps": 30,
    "loss": 3.210456,
    "learningRate": 0.002,
    "tokensPerSecond": 181.23456,
    "etaSeconds": 83.2,
    "worldSize": 2,
    "engine": "DeepSpeedEngine",
    "lastCheckpointStep": 10,
    "evalLoss": 3.3,
    "mfu": 0.41237,
    "peakMemoryBytes": 2500000000,
    "measures": {"expert_load/0": 0.5},
    "updatedAt": 1767614400.5,
}


def test_a_pod_with_an_ipv6_address_is_polled() -> None:
    world = World()
    world.run_until("train")
    pods = world.add_pods("glossary-train-1")
    world.replace_status(pods[0], {"phase": "Running", "podIP": "fd00::1:7"})
    decision = world.settle()
    (request,) = decision.requests
    assert isinstance(request, HttpRequest)
    assert request.url == "http://[fd00::1:7]:9400/progress"


def training() -> tuple[World, str]:
    world = World()
    world.run_until("train")
    pods = world.add_pods("glossary-train-1")
    world.settle()
    return world, f"progress/{pods[0]['metadata']['uid']}"


def report(world: World, request: str, **changes: Any) -> dict[str, Any]:
    world.responses[request] = HttpResponse(at=0, status=200, body={**REPORTED, **changes})
    world.settle()
    return dict(world.status["progress"])


def test_a_response_is_shown_in_numbers_and_in_a_sentence() -> None:
    world, request = training()
    assert report(world, request) == {
        "stage": "train",
        "step": 12,
        "totalSteps": 30,
        "loss": 3.2105,
        "tokensPerSecond": 181.235,
        "learningRate": 0.002,
        "worldSize": 2,
        "engine": "DeepSpeedEngine",
        "lastCheckpointStep": 10,
        "evalLoss": 3.3,
        "mfu": 0.412,
        "peakMemoryBytes": 2500000000,
        "etaSeconds": 84,
        "updatedAt": "2026-01-05T12:00:00Z",
    }
    assert world.status["message"] == "training: step 12 of 30, 181 tokens/s, about 1m24s left"


def test_a_response_without_news_causes_no_write() -> None:
    world, request = training()
    before = report(world, request)
    assert report(world, request, updatedAt=1767614460.0) == before
    assert report(world, request, updatedAt=1767614460.0, step=13) != before


@pytest.mark.parametrize(
    "answer",
    [
        HttpResponse(at=0, error="connection refused"),
        HttpResponse(at=0, status=500, body=REPORTED),
        HttpResponse(at=0, status=200, body="busy"),
        HttpResponse(at=0, status=200, body={**REPORTED, "attempt": 2}),
        HttpResponse(at=0, status=200, body={**REPORTED, "stage": "prepare"}),
    ],
)
def test_last_progress_stays_when_a_pod_does_not_respond(answer: HttpResponse) -> None:
    world, request = training()
    before = report(world, request)
    world.responses[request] = answer
    world.settle()
    assert world.status["progress"] == before


def test_numbers_that_json_cannot_hold_are_left_out() -> None:
    world, request = training()
    progress = report(world, request, loss=math.nan, tokensPerSecond=math.inf, etaSeconds=math.nan)
    assert not {"loss", "tokensPerSecond", "etaSeconds"} & set(progress)


def test_progress_of_a_stage_that_has_ended_is_not_shown_for_the_next() -> None:
    world, request = training()
    report(world, request)
    world.succeed("train")
    world.settle()
    assert world.status["phase"] == "Evaluating"
    assert "progress" not in world.status


def test_address_of_an_ipv6_pod_is_bracketed() -> None:
    assert progress_request("u", "fd00::7", 2.0).url == "http://[fd00::7]:9400/progress"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1s"), (59, "59s"), (200, "3m20s"), (7500, "2h05m"), (273600, "3d04h"), (-1, None)],
)
def test_duration_is_short(seconds: float, text: str | None) -> None:
    assert format_duration(seconds) == text


def test_the_message_of_a_training_job_has_its_step_with_any_message_of_its_pod() -> None:
    world, request = training()
    report(world, request, message="", tokensPerSecond=None, etaSeconds=None)
    assert world.status["message"] == "training: step 12 of 30"
    report(world, request, message="saving a checkpoint", tokensPerSecond=math.nan)
    text = "saving a checkpoint: step 12 of 30, about 1m24s left"
    assert world.status["message"] == text


def test_a_response_with_a_name_too_long_for_the_status_is_ignored() -> None:
    world, request = training()
    assert report(world, request, engine="E" * 300) == {
        "stage": "train",
        "step": 0,
        "totalSteps": 30,
    }


@pytest.mark.parametrize(
    ("age", "seconds"), [(None, 2.0), (0, 2.0), (300, 5.0), (1800, 30.0), (86400, 30.0)]
)
def test_the_longer_a_stage_runs_the_rarer_it_is_polled(age: int | None, seconds: float) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    started = None if age is None else now - timedelta(seconds=age)
    assert poll_interval(2.0, started, now) == seconds

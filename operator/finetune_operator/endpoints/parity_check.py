"""The checks of a revision before it takes traffic.

The operator sends every ready pod two requests: does vLLM list the model under the endpoint's name,
and, where there is a probe, what does the model answer to it? Decoding is greedy and penalties
are off, so the answer is a property of the weights. It must equal the recorded one, apart from
white space at the end of both; anything else means that the pod does not serve the model that was
evaluated. A wrong answer counts when the pod gave it twice. The operator repeats a request without
a response, because an unreachable pod says nothing about the model.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune_api.evaluation_summary import ProbeRecord
from finetune_api.modelendpoint import Probe

from finetune_operator.decision import HttpRequest, HttpResponse, Manifest, View
from finetune_operator.endpoints.failure import RevisionFailure
from finetune_operator.endpoints.pods import count_restarts, shorten
from finetune_operator.resources.metadata import compute_digest
from finetune_operator.resources.vllm import PORT

TRIES = 2
RETRY_SECONDS = 2.0
OVERLOADED = (408, 429)
KEEP_SECONDS = 3600.0
"""Interval of a request that has its response: the engine keeps responses only while decisions
contain their requests."""


@dataclass(frozen=True)
class CheckResult:
    """The result of the checks so far."""

    outcome: Literal["Pending", "Passed"] | RevisionFailure
    """A failure is final: the revision has failed."""
    detail: str = ""
    """What the checks wait for."""
    has_error: bool = False
    """Whether a request to a pod failed, so that there is still no answer of the model."""
    requests: tuple[HttpRequest, ...] = ()


def check_pods(
    pods: list[Manifest], model: str, number: int, probe: Probe | ProbeRecord | None, view: View
) -> CheckResult:
    """Send the requests to every pod, and evaluate the responses so far."""
    results = [_check_pod(pod, model, number, probe, view) for pod in pods]
    requests = tuple(request for each in results for request in each.requests)
    for each in results:
        if isinstance(each.outcome, RevisionFailure):
            return CheckResult(each.outcome, requests=requests)
    pending = [each for each in results if each.outcome == "Pending"]
    if pending:
        worst = max(pending, key=lambda each: each.has_error)
        return CheckResult("Pending", worst.detail, worst.has_error, requests)
    return CheckResult("Passed" if results else "Pending", requests=requests)


def _check_pod(
    pod: Manifest, model: str, number: int, probe: Probe | ProbeRecord | None, view: View
) -> CheckResult:
    checks: list[_Check] = [_ModelListCheck(pod, model, number)]
    if probe is not None:
        checks.append(_ParityCheck(pod, model, number, probe))
    requests: tuple[HttpRequest, ...] = ()
    for check in checks:
        result = _run_check(check, view)
        requests += result.requests
        if result.outcome != "Passed":
            return replace(result, requests=requests)
    return CheckResult("Passed", requests=requests)


class _Check:
    """One request to one pod; its ids change when the kubelet restarts the container."""

    kind = ""
    path = ""
    body: dict[str, Any] | None = None
    timeout = 5.0
    """Seconds."""

    def __init__(self, pod: Manifest, model: str, number: int) -> None:
        self.pod = pod["metadata"]["name"]
        self.model = model
        self.subject = f"{pod['metadata']['uid']}/{count_restarts(pod)}/r{number}"
        address = pod["status"]["podIP"]
        self.base = f"http://[{address}]:{PORT}" if ":" in address else f"http://{address}:{PORT}"

    def build_request(self, number: int, is_answered: bool) -> HttpRequest:
        """The request of one try, counted from 1."""
        interval = KEEP_SECONDS if is_answered else RETRY_SECONDS
        id_ = f"{self.subject}/{self.kind}/{number}"
        return HttpRequest(id_, self.base + self.path, self.body, self.timeout, interval)

    def find_error(self, status: int, body: Any) -> RevisionFailure | None:
        """What is wrong with the response; None if it is right."""
        raise NotImplementedError


class _ModelListCheck(_Check):
    kind = "models"
    path = "/v1/models"

    def find_error(self, status: int, body: Any) -> RevisionFailure | None:
        listed = _get_path(body, "data")
        ids = [_get_path(each, "id") for each in listed] if isinstance(listed, list) else []
        if status == 200 and self.model in ids:
            return None
        text = f"pod {self.pod} lists {ids} with HTTP {status} on /v1/models, not {self.model!r}"
        return RevisionFailure("WrongModel", text)


class _ParityCheck(_Check):
    path = "/v1/chat/completions"

    def __init__(self, pod: Manifest, model: str, number: int, probe: Probe | ProbeRecord) -> None:
        super().__init__(pod, model, number)
        self.expected = probe.answer.rstrip()
        self.body = build_chat_request(model, probe)
        self.kind = f"chat-{compute_digest([self.body, self.expected], 8)}"
        self.timeout = 30.0 + probe.max_tokens

    def find_error(self, status: int, body: Any) -> RevisionFailure | None:
        answer = _get_path(body, "choices", 0, "message", "content")
        if status != 200 or not isinstance(answer, str):
            why = _get_path(body, "error", "message") or _get_path(body, "message") or body
            text = f"pod {self.pod} refuses the probe with HTTP {status}: {shorten(str(why), 200)}"
            return RevisionFailure("ProbeRefused", text)
        if answer.rstrip() == self.expected:
            return None
        text = (
            f"pod {self.pod} answers {shorten(answer, 80)!r} to the probe, "
            f"but evaluation recorded {shorten(self.expected, 80)!r}"
        )
        return RevisionFailure("ParityMismatch", text)


def build_chat_request(model: str, probe: Probe | ProbeRecord) -> dict[str, Any]:
    """The probe as a request of the OpenAI API.

    It sets the penalties, because vLLM otherwise takes them from generation_config.json.
    """
    return {
        "model": model,
        "messages": [{"role": each.role, "content": each.content} for each in probe.messages],
        "temperature": 0,
        "top_p": 1,
        "repetition_penalty": 1.0,
        "max_tokens": probe.max_tokens,
        "seed": 0,
        "stream": False,
    }


def _run_check(check: _Check, view: View) -> CheckResult:
    """Repeat the request until there is a right answer, or TRIES wrong ones."""
    requests: tuple[HttpRequest, ...] = ()
    error: RevisionFailure | None = None
    for number in range(1, TRIES + 1):
        response = view.http_response(check.build_request(number, is_answered=False).id)
        is_answered = _is_answer(response)
        requests += (check.build_request(number, is_answered),)
        if response is None or not is_answered:
            detail = _describe_wait(check, response)
            return CheckResult("Pending", detail, response is not None, requests)
        error = check.find_error(response.status or 0, response.body)
        if error is None:
            return CheckResult("Passed", requests=requests)
    return CheckResult(error or "Passed", requests=requests)


def _is_answer(response: HttpResponse | None) -> bool:
    """Whether the model itself answered; after server errors and overload the operator retries."""
    if response is None or response.status is None:
        return False
    return response.status < 500 and response.status not in OVERLOADED


def _describe_wait(check: _Check, response: HttpResponse | None) -> str:
    if response is None:
        return f"waiting for the answer of pod {check.pod} on {check.path}"
    why = response.error or f"HTTP {response.status}"
    return f"pod {check.pod} does not answer {check.path}: {shorten(why, 120)}"


def _get_path(data: Any, *path: str | int) -> Any:
    """The value at this path of a JSON document; None if the document has no such path."""
    for each in path:
        if isinstance(each, int):
            data = data[each] if isinstance(data, list) and len(data) > each else None
        else:
            data = data.get(each) if isinstance(data, dict) else None
    return data

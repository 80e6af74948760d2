"""The examination of a revision before it takes traffic.

Every ready pod is asked two things: whether it lists the model under the endpoint's name, and,
where there is a probe, what it answers to it. Decoding is greedy and penalties are off, so the
answer is a property of the weights; it must equal the recorded one, with white space at the end
of both left out. Anything but equality means that something else is served than was evaluated.
A wrong answer counts when it was given twice. Where there is none, it is asked for again: that
the operator cannot reach a pod says nothing about the model.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune_api.modelendpoint import Probe

from finetune_operator.decision import HttpRequest, HttpResponse, Manifest, View
from finetune_operator.endpoints.pods import restarts, shorten
from finetune_operator.resources.metadata import compute_digest
from finetune_operator.resources.vllm import PORT
from finetune_operator.stalled import Stalled

TRIES = 2
RETRY_SECONDS = 2.0
OVERLOADED = (408, 429)
SETTLED_SECONDS = 3600.0
"""Interval of a question that has its answer: it stays asked, so that the answer is kept."""


@dataclass(frozen=True)
class Verdict:
    """What came of the examination so far."""

    outcome: Literal["Pending", "Passed"] | Stalled
    """A Stalled is final: the revision has failed."""
    detail: str = ""
    """What is being waited for."""
    silent: bool = False
    """Whether a pod was asked and did not answer."""
    requests: tuple[HttpRequest, ...] = ()


def examine(
    pods: list[Manifest], model: str, number: int, probe: Probe | None, view: View
) -> Verdict:
    """Ask every pod, and judge what has been answered."""
    verdicts = [_examine_pod(pod, model, number, probe, view) for pod in pods]
    asks = tuple(ask for each in verdicts for ask in each.requests)
    for each in verdicts:
        if isinstance(each.outcome, Stalled):
            return Verdict(each.outcome, requests=asks)
    waiting = [each for each in verdicts if each.outcome == "Pending"]
    if waiting:
        worst = max(waiting, key=lambda each: each.silent)
        return Verdict("Pending", worst.detail, worst.silent, asks)
    return Verdict("Passed" if verdicts else "Pending", requests=asks)


def _examine_pod(
    pod: Manifest, model: str, number: int, probe: Probe | None, view: View
) -> Verdict:
    questions: list[_Question] = [_Listing(pod, model, number)]
    if probe is not None:
        questions.append(_Parity(pod, model, number, probe))
    asks: tuple[HttpRequest, ...] = ()
    for question in questions:
        verdict = _pursue(question, view)
        asks += verdict.requests
        if verdict.outcome != "Passed":
            return replace(verdict, requests=asks)
    return Verdict("Passed", requests=asks)


class _Question:
    """One question to one pod; ids change when the container is started again."""

    kind = ""
    path = ""
    body: dict[str, Any] | None = None
    timeout = 5.0

    def __init__(self, pod: Manifest, model: str, number: int) -> None:
        self.pod = pod["metadata"]["name"]
        self.model = model
        self.subject = f"{pod['metadata']['uid']}/{restarts(pod)}/r{number}"
        address = pod["status"]["podIP"]
        self.base = f"http://[{address}]:{PORT}" if ":" in address else f"http://{address}:{PORT}"

    def ask(self, attempt: int, settled: bool) -> HttpRequest:
        """The request of one try."""
        interval = SETTLED_SECONDS if settled else RETRY_SECONDS
        id_ = f"{self.subject}/{self.kind}/{attempt}"
        return HttpRequest(id_, self.base + self.path, self.body, self.timeout, interval)

    def judge(self, status: int, body: Any) -> Stalled | None:
        """None when the answer is right; otherwise what is wrong with it."""
        raise NotImplementedError


class _Listing(_Question):
    kind = "models"
    path = "/v1/models"

    def judge(self, status: int, body: Any) -> Stalled | None:
        listed = _dig(body, "data")
        ids = [_dig(each, "id") for each in listed] if isinstance(listed, list) else []
        if status == 200 and self.model in ids:
            return None
        text = f"pod {self.pod} lists {ids} with HTTP {status} on /v1/models, not {self.model!r}"
        return Stalled("WrongModel", text)


class _Parity(_Question):
    path = "/v1/chat/completions"

    def __init__(self, pod: Manifest, model: str, number: int, probe: Probe) -> None:
        super().__init__(pod, model, number)
        self.wanted = probe.answer.rstrip()
        self.body = chat_request(model, probe)
        self.kind = f"chat-{compute_digest([self.body, self.wanted], 8)}"
        self.timeout = 30.0 + probe.max_tokens

    def judge(self, status: int, body: Any) -> Stalled | None:
        answer = _dig(body, "choices", 0, "message", "content")
        if status != 200 or not isinstance(answer, str):
            why = _dig(body, "error", "message") or _dig(body, "message") or body
            text = f"pod {self.pod} refuses the probe with HTTP {status}: {shorten(str(why), 200)}"
            return Stalled("ProbeRefused", text)
        if answer.rstrip() == self.wanted:
            return None
        text = (
            f"pod {self.pod} answers {shorten(answer, 80)!r} to the probe, "
            f"but evaluation recorded {shorten(self.wanted, 80)!r}"
        )
        return Stalled("ParityMismatch", text)


def chat_request(model: str, probe: Probe) -> dict[str, Any]:
    """The probe as a request of the OpenAI API.

    Penalties are spelled out because vLLM otherwise takes them from generation_config.json.
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


def _pursue(question: _Question, view: View) -> Verdict:
    """Ask until there is a right answer, or TRIES wrong ones."""
    asks: tuple[HttpRequest, ...] = ()
    wrong: Stalled | None = None
    for attempt in range(1, TRIES + 1):
        answer = view.http_response(question.ask(attempt, settled=False).id)
        settled = _settled(answer)
        asks += (question.ask(attempt, settled),)
        if answer is None or not settled:
            return Verdict("Pending", _silence(question, answer), answer is not None, asks)
        wrong = question.judge(answer.status or 0, answer.body)
        if wrong is None:
            return Verdict("Passed", requests=asks)
    return Verdict(wrong or "Passed", requests=asks)


def _settled(answer: HttpResponse | None) -> bool:
    """Whether it is an answer of the model: errors and overload are asked again."""
    if answer is None or answer.status is None:
        return False
    return answer.status < 500 and answer.status not in OVERLOADED


def _silence(question: _Question, answer: HttpResponse | None) -> str:
    if answer is None:
        return f"waiting for the answer of pod {question.pod} on {question.path}"
    why = answer.error or f"HTTP {answer.status}"
    return f"pod {question.pod} does not answer {question.path}: {shorten(why, 120)}"


def _dig(data: Any, *path: str | int) -> Any:
    for step in path:
        if isinstance(step, int):
            data = data[step] if isinstance(data, list) and len(data) > step else None
        else:
            data = data.get(step) if isinstance(data, dict) else None
    return data

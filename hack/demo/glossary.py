"""The main job: apply examples/01-glossary.yaml, follow it, send the served model three prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hack.demo import ask, report
from hack.demo.follow import follow
from hack.demo.kubectl import Kubectl
from hack.demo.platform import ROOT, Platform
from hack.demo.timeline import Timeline

NAME = "glossary"
ENDPOINT = "glossary"
EXAMPLE = ROOT / "examples" / "01-glossary.yaml"
REPORT = ROOT / "demo-report.json"
SECONDS = 900.0
QUESTIONS = 3


def run(
    platform: Platform,
    timeline: Timeline,
    seen: Callable[[dict[str, Any]], None] = lambda job: None,
    path: Path = REPORT,
) -> dict[str, Any]:
    """Run the job to its end and return the report, which is also written to `path`."""
    kubectl = platform.kubectl
    kubectl.run("delete", "finetunejob", NAME, "--ignore-not-found", "--wait", timeout=120)
    with timeline.step(f"kubectl apply -f {EXAMPLE.relative_to(ROOT)}"):
        kubectl.run("apply", "-f", str(EXAMPLE))
    with timeline.step("Fine-tune, compare, export, roll out"):
        job = follow(kubectl, NAME, SECONDS, timeline.say, seen)
    with timeline.step(f"Ask the endpoint {QUESTIONS} questions"):
        pod = _serving_pod(kubectl)
        questions = _ask(kubectl, pod, job)
        versions = _versions(kubectl, pod)
    data = report.build(job, timeline.seconds, timeline.total(), questions, versions)
    report.write(data, path)
    return data


def _ask(kubectl: Kubectl, pod: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Send the evaluation's prompts and return the three answers to each."""
    samples = _read(kubectl, pod, "evaluation.json")["samples"]
    limit = job["spec"]["evaluation"]["maxNewTokens"]
    out = []
    with ask.forwarded(kubectl, ENDPOINT) as url:
        for sample in samples[:QUESTIONS]:
            served = ask.chat(url, ENDPOINT, sample["messages"], limit)
            recorded = sample["tuned"]["text"]
            out.append(
                {
                    "question": sample["messages"][-1]["content"],
                    "reference": sample["reference"],
                    "base": sample["base"]["text"],
                    "tuned": recorded,
                    "served": served,
                    "equal": served.strip() == recorded.strip(),
                }
            )
    return out


def _serving_pod(kubectl: Kubectl) -> str:
    """The newest pod that serves the endpoint; the artifact is mounted in it."""
    running = ("-l", f"finetune.dev/endpoint={ENDPOINT}", "--field-selector=status.phase=Running")
    pods = kubectl.json("get", "pods", *running)["items"]
    newest = max(pods, key=lambda item: str(item["metadata"]["creationTimestamp"]))
    return str(newest["metadata"]["name"])


def _read(kubectl: Kubectl, pod: str, name: str) -> dict[str, Any]:
    """A JSON file of the served artifact."""
    found: dict[str, Any] = json.loads(kubectl.run("exec", pod, "--", "cat", f"/mnt/models/{name}"))
    return found


def _versions(kubectl: Kubectl, pod: str) -> dict[str, str]:
    """Kubernetes, and the libraries that made the artifact."""
    server = json.loads(kubectl.run("version", "-o", "json"))["serverVersion"]["gitVersion"]
    libraries: dict[str, str] = _read(kubectl, pod, "manifest.json")["versions"]
    return {"kubernetes": server, **libraries}

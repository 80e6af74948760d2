"""The models that jobs have exported for an endpoint, and the latest of them. Pure.

A job hands its model over with the status write that counts the first attempt of its stage serve;
the same write freezes `spec.serve`, so that the model cannot be taken back from an endpoint that
may serve it already. Of several jobs the one that was created last has the latest model, whenever
each of them ended: a job that takes longer than its successor does not replace the newer model.
"""

from collections.abc import Iterator

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.modelendpoint import ExportedModel, SourceJob

from finetune_operator.decision import Manifest, View


def find_latest_model(
    view: View, namespace: str, endpoint: str, recorded: ExportedModel | None
) -> ExportedModel | None:
    """The latest model that was handed over to an endpoint; `recorded` is that of its status, whose
    job may be gone."""
    exporters = [job for job in _list_exporters(view, namespace, endpoint) if is_handed_over(job)]
    for job in sorted(exporters, key=_compute_job_age, reverse=True):
        if recorded is not None and _compute_job_age(job) <= compute_age(recorded.job):
            break
        if model := _read_model(job):
            return model
    return recorded


def find_younger_exporter(view: View, job: Manifest) -> str | None:
    """The name of a younger job that has exported a model for the same endpoint."""
    age, endpoint = _compute_job_age(job), find_endpoint_name(job)
    exporters = _list_exporters(view, job["metadata"]["namespace"], endpoint or "")
    younger = (each for each in exporters if _compute_job_age(each) > age)
    return next((str(each["metadata"]["name"]) for each in younger), None)


def find_endpoint_name(job: Manifest) -> str | None:
    """The ModelEndpoint that a job names."""
    name = ((job.get("spec") or {}).get("serve") or {}).get("endpoint")
    return name if isinstance(name, str) else None


def is_handed_over(job: Manifest) -> bool:
    """Whether a job has given its model to the endpoint that it names."""
    stages = (job.get("status") or {}).get("stages") or ()
    return any(each.get("name") == "serve" and each.get("attempt", 0) > 0 for each in stages)


def read_source(job: Manifest) -> SourceJob:
    """What an endpoint records about a job."""
    metadata = job["metadata"]
    created_at = metadata.get("creationTimestamp") or ""
    return SourceJob(name=metadata["name"], uid=metadata["uid"], created_at=created_at)


def compute_age(job: SourceJob) -> tuple[str, str, str]:
    """A key by which a younger job sorts later. The API server writes times in whole seconds of
    UTC; name and uid decide between two jobs of one second."""
    return job.created_at, job.name, job.uid


def _compute_job_age(job: Manifest) -> tuple[str, str, str]:
    return compute_age(read_source(job))


def _list_exporters(view: View, namespace: str, endpoint: str) -> Iterator[Manifest]:
    """The jobs that have exported a model for an endpoint. Only those that passed their gate have
    an artifact."""
    for job in view.list("FineTuneJob", namespace):
        if find_endpoint_name(job) == endpoint and (job.get("status") or {}).get("artifact"):
            yield job


def _read_model(job: Manifest) -> ExportedModel | None:
    status = FineTuneJobStatus.from_stored(job.get("status"))
    if status.artifact is None:
        return None  # another version wrote it
    artifact = status.artifact
    return ExportedModel(
        job=read_source(job), uri=artifact.uri, digest=artifact.digest, probe=status.probe
    )

"""Faults of endpoints that follow jobs, and of jobs that hand their models over."""

from __future__ import annotations

from hack.mutants.fault import CONTROLLERS, ENDPOINTS, Fault

ENDPOINT_FAULTS = (
    Fault(
        "the job that exported last is followed, however old it is",
        "exported_models.py",
        "in sorted(exporters, key=_compute_job_age, reverse=True):",
        "in sorted(exporters, key=_compute_job_age):",
        ENDPOINTS,
    ),
    Fault(
        "an endpoint goes back to an older job when the latest one is deleted",
        "exported_models.py",
        "    return recorded\n",
        "    return None\n",
        ENDPOINTS,
    ),
    Fault(
        "a model is followed that its job may still keep back",
        "exported_models.py",
        "_list_exporters(view, namespace, endpoint) if is_handed_over(job)]",
        "_list_exporters(view, namespace, endpoint)]",
        ENDPOINTS,
    ),
    Fault(
        "the probe of a job is not asked",
        "endpoints/observe.py",
        "ServedModel(self.latest.uri, self.latest.digest, self.latest.probe)",
        "ServedModel(self.latest.uri, self.latest.digest, None)",
        ENDPOINTS,
    ),
    Fault(
        "a job that hands its model over wakes no endpoint",
        "controllers.py",
        "if is_handed_over(job) and (endpoint := find_endpoint_name(job)):",
        "if False and (endpoint := find_endpoint_name(job)):",
        CONTROLLERS,
    ),
    Fault(
        "a job hands its model over to an endpoint that is pinned to another one",
        "jobs/stages/serve.py",
        "return not pinned or pinned == {",
        "return True or pinned == {",
    ),
    Fault(
        "a job ends before its endpoint has recorded its model",
        "jobs/stages/serve.py",
        "if is_given and not _has_recorded(served, ctx.job):",
        "if False and not _has_recorded(served, ctx.job):",
    ),
    Fault(
        "an endpoint goes back from its latest model to that of an older job",
        "exported_models.py",
        "_compute_job_age(job) <= compute_age(recorded.job):",
        "job is None:",
        ENDPOINTS,
    ),
    Fault(
        "a job waits although its endpoint has the model of a younger one",
        "jobs/stages/serve.py",
        "latest = None if pinned else served.latest",
        "latest = None",
    ),
)

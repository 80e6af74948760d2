"""Reasons of conditions of an object on its way or at its end."""

from finetune_api.reasons.reason import ENDPOINT, JOB, PROFILE, Group, Reason

STATES = Group(
    "States",
    "Reasons of conditions of an object on its way or at its end. A FineTuneJob also records a "
    "Normal event with the new phase as its reason when the phase changes.",
    (
        Reason("Clear", f"{ENDPOINT}, {PROFILE}", "`Stalled` is `False`: nothing is missing.", ""),
        Reason("Deploying", JOB, "The endpoint starts and checks the new revision.", ""),
        Reason("Evaluating", JOB, "evaluate compares the tuned model with its base model.", ""),
        Reason("Exporting", JOB, "export writes the artifact.", ""),
        Reason(
            "Failed",
            JOB,
            "The job, or the stage of the condition, failed and the status has no other reason.",
            "Read `status.message`.",
        ),
        Reason("NoActiveRevision", ENDPOINT, "No revision has got the traffic yet.", ""),
        Reason("Pending", JOB, "The job, or the stage of the condition, has not started.", ""),
        Reason(
            "PodsNotReady",
            ENDPOINT,
            "No pod of the active revision is ready.",
            "Run `kubectl get pods` and read their logs.",
        ),
        Reason("Preparing", JOB, "prepare fetches and checks model and data.", ""),
        Reason("Progressing", JOB, "`Stalled` is `False`: nothing is missing.", ""),
        Reason(
            "Queued", JOB, "Training waits until all its pods run, or for its next attempt.", ""
        ),
        Reason("RevisionActive", ENDPOINT, "The active revision answers.", ""),
        Reason("RollingOut", ENDPOINT, "The operator brings a revision or its pods up.", ""),
        Reason("Running", JOB, "The stage of the condition runs.", ""),
        Reason(
            "Settled", ENDPOINT, "`Reconciling` is `False`: the endpoint is as its spec says.", ""
        ),
        Reason("Succeeded", JOB, "The job, or the stage of the condition, succeeded.", ""),
        Reason(
            "Suspended",
            JOB,
            "Nothing of the job runs because `spec.suspend` is true.",
            "Set `spec.suspend` to false to resume.",
        ),
        Reason("Training", JOB, "All training pods run.", ""),
        Reason("Usable", PROFILE, "The profile is valid, and not one of several defaults.", ""),
        Reason(
            "WaitingForJob",
            ENDPOINT,
            "`Reconciling` is `True`: the endpoint has no `spec.artifact`, and no job of its "
            "namespace has exported a model for it yet.",
            "Create a FineTuneJob whose `serve.endpoint` is the endpoint's name, or set "
            "`spec.artifact`.",
        ),
        Reason(
            "WaitingForQueue",
            JOB,
            "`Reconciling` is `True`: another controller, such as Kueue, has suspended the Job of "
            "the stage, and no pod of it runs.",
            "Wait for the queue, or check it; the label `kueue.x-k8s.io/queue-name` of the "
            "FineTuneJob names that of Kueue.",
        ),
    ),
)

"""Reasons that only events have."""

from finetune_api.reasons.reason import ENDPOINT, JOB, Group, Reason

EVENTS = Group(
    "Events only",
    "",
    (
        Reason(
            "NodeExcluded",
            JOB,
            "Warning. Two attempts ended because of a node; the next ones run elsewhere.",
            "Check the node.",
        ),
        Reason(
            "Planned", JOB, "Normal. The planner chose how to train; the message has the plan.", ""
        ),
        Reason("Resumed", JOB, "Normal. The job continues after a suspension.", ""),
        Reason("RevisionActive", ENDPOINT, "Normal. A revision gets the traffic from now on.", ""),
        Reason(
            "RevisionFailed",
            ENDPOINT,
            "Warning. A revision failed; the message has the [reason](#a-revision-failed).",
            "Follow the remedy of that reason.",
        ),
        Reason("RevisionStarting", ENDPOINT, "Normal. The operator starts a new revision.", ""),
    ),
)

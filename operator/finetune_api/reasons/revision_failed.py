"""Why a revision of a ModelEndpoint failed."""

from finetune_api.reasons.reason import ENDPOINT, Group, Reason

REVISION = Group(
    "A revision failed",
    "The revision's state is `Failed`, and its message begins with the reason. The revision "
    "before, if any, keeps the traffic. After `CrashLoop`, `FailedToLoad` and "
    "`BlockedByFailedLoad` the operator starts a new revision with the same content, three times; "
    "until then `Reconciling` is `True` with the reason. Otherwise `Stalled` is: correct the "
    "cause, and change the artifact, the profile or the endpoint, which starts a new revision.",
    (
        Reason(
            "BlockedByFailedLoad",
            ENDPOINT,
            "KServe reports that the model failed to load.",
            "Read the message and the pod's log.",
        ),
        Reason(
            "CrashLoop",
            ENDPOINT,
            "A container of the revision ended three times; the message has the last error of its "
            "log.",
            "Correct what the error names.",
        ),
        Reason(
            "FailedToLoad",
            ENDPOINT,
            "KServe reports that the model failed to load.",
            "Read the message and the pod's log.",
        ),
        Reason(
            "InvalidSpec",
            ENDPOINT,
            "KServe rejects the InferenceService.",
            "Read the message; check that the operator supports the cluster's release of KServe.",
        ),
        Reason(
            "OOMKilled",
            ENDPOINT,
            "The kernel killed the container because it used more host memory than its limit.",
            "Raise `hostMemoryPerDevice` in the AcceleratorProfile, or `limitsPerDevice.memory` if "
            "it is set.",
        ),
        Reason(
            "ParityMismatch",
            ENDPOINT,
            "A pod's answer to the probe differs from the recorded one, so it does not serve the "
            "model that was evaluated.",
            "Compare the serving image, `serving.dtype` and `serving.args` of the profile with "
            "those of the evaluation; check the artifact's files.",
        ),
        Reason(
            "ProbeRefused",
            ENDPOINT,
            "A pod answers the probe with an HTTP error.",
            "Read the message; check `spec.probe` and the profile's `serving.args`.",
        ),
        Reason(
            "RevisionFailed",
            ENDPOINT,
            "The revision failed, and its status has no reason any more.",
            "Read the revision's message.",
        ),
        Reason(
            "StartTimeout",
            ENDPOINT,
            "The container runs and did not become ready in time.",
            "Read the pod's log.",
        ),
        Reason(
            "WrongModel",
            ENDPOINT,
            "`/v1/models` of a pod does not list the endpoint's model.",
            "Check the profile's `serving.image` and `serving.args`.",
        ),
    ),
)

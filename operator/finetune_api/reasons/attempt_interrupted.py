"""Why an attempt ended without fault of the job."""

from finetune_api.reasons.reason import ANY, Group, Reason

DISRUPTED = Group(
    "An attempt was interrupted",
    "As above, but the cluster or a user ended the attempt, so it does not count as a restart "
    "and the job continues however often it happens.",
    (
        Reason(
            "AttemptAlreadyClaimed",
            ANY,
            "A pod of the attempt was started before, and may still run.",
            "",
        ),
        Reason(
            "DeletionByPodGC",
            ANY,
            "The control plane deleted a pod whose node is gone.",
            "",
            from_kubernetes=True,
        ),
        Reason(
            "DeletionByTaintManager",
            ANY,
            "The control plane deleted a pod because its node is lost or tainted.",
            "Check the node.",
            from_kubernetes=True,
        ),
        Reason(
            "Disrupted",
            ANY,
            "A component of the cluster ended a pod and gave no reason.",
            "",
        ),
        Reason(
            "Evicted",
            ANY,
            "The kubelet evicted a pod because its node was short of memory, disk or processes.",
            "Check what else runs on the node.",
        ),
        Reason(
            "EvictionByEvictionAPI",
            ANY,
            "A pod was evicted, for example because its node is drained.",
            "",
            from_kubernetes=True,
        ),
        Reason(
            "ExclusionLifted",
            ANY,
            "No other node had free capacity, so the job may use nodes again on which its attempts "
            "failed.",
            "Add nodes, or check the ones that the message names.",
        ),
        Reason(
            "Fenced",
            ANY,
            "A later attempt has replaced this one.",
            "",
        ),
        Reason(
            "GangUnschedulable",
            "train",
            "Some pods of the attempt found no node in the time that an autoscaler may take "
            "(`scaleUpSeconds` of the chart), so the others gave their devices back. The next "
            "attempt begins within five minutes.",
            "Free or add nodes, raise the quota, or lower `compute.nodes`.",
        ),
        Reason(
            "JobDeleted",
            ANY,
            "A user or a component deleted the attempt's Job.",
            "",
        ),
        Reason(
            "NodeLost",
            ANY,
            "The pod's node is gone.",
            "Check the node.",
        ),
        Reason(
            "NodeRestarted",
            ANY,
            "The pod's node or its container runtime restarted.",
            "",
        ),
        Reason(
            "NodeShutdown",
            ANY,
            "The pod's node was shut down.",
            "",
        ),
        Reason(
            "PodDeleted",
            ANY,
            "A user or a component deleted a pod.",
            "",
        ),
        Reason(
            "Preempted",
            ANY,
            "A pod was asked to stop, and stopped; training saved a checkpoint first.",
            "",
        ),
        Reason(
            "Preempting",
            ANY,
            "The kubelet ended a pod to make place for a critical one.",
            "",
        ),
        Reason(
            "PreemptionByScheduler",
            ANY,
            "The scheduler preempted a pod for one of higher priority.",
            "",
            from_kubernetes=True,
        ),
        Reason(
            "Suspended",
            ANY,
            "The attempt ended because `spec.suspend` is true.",
            "Set `spec.suspend` to false to resume.",
        ),
        Reason(
            "Terminated",
            ANY,
            "The kubelet ended a pod, for example in a node's graceful shutdown.",
            "",
        ),
        Reason(
            "TerminationByKubelet",
            ANY,
            "The kubelet ended a pod: node pressure, a shutdown of the node, or a critical pod.",
            "",
            from_kubernetes=True,
        ),
    ),
)

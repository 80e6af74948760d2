"""Why an attempt failed and counts as a restart."""

from finetune_api.reasons.reason import ANY, Group, Reason

FAILED = Group(
    "An attempt failed",
    "`status.failure` and a Warning event have the reason. The operator starts the next "
    "attempt after a delay, from the newest checkpoint, and counts one restart. When "
    "`maxRestarts` are used up, the job fails with this reason.",
    (
        Reason(
            "ArtifactChanged",
            "export",
            "The files of the artifact changed while export wrote them.",
            "Check the workspace's storage.",
        ),
        Reason(
            "ArtifactIncomplete",
            "export",
            "The artifact lacks weights.",
            "Check the workspace's storage.",
        ),
        Reason(
            "Crashed",
            ANY,
            "A pod ended without a result.",
            "Read the pod's log.",
        ),
        Reason(
            "Evicted",
            ANY,
            "The kubelet evicted the pod because it used more than its own limit.",
            "Raise what the message names, such as `sharedMemory` in the AcceleratorProfile.",
        ),
        Reason(
            "InternalError",
            ANY,
            "The trainer raised an unexpected exception.",
            "Read the pod's log, and report the error.",
        ),
        Reason(
            "NoDevice",
            "train",
            "The pod has no CUDA device.",
            "Check the node's driver and device plugin, and the profile's `resourceName`.",
        ),
        Reason(
            "NoResult",
            ANY,
            "Every pod succeeded, and the result is missing or incomplete.",
            "Read the pod's log; check that operator and trainer image have the same release.",
        ),
        Reason(
            "NoSpaceLeft",
            ANY,
            "The workspace, the pod's shared memory or the node's disk is full; the message says "
            "which.",
            'Enlarge the workspace, or delete jobs and release artifacts (docs/operations.md, "How '
            "long a model stays\"); raise the profile's `sharedMemory`; or free disk space on the "
            "node.",
        ),
        Reason(
            "NoTrainedWeights",
            "evaluate, export",
            "Training wrote no weights.",
            "Check the workspace's storage.",
        ),
        Reason(
            "OutOfHostMemory",
            ANY,
            "The kernel killed the pod because it used more host memory than its limit.",
            "Raise `hostMemoryPerDevice` in the AcceleratorProfile, or `limitsPerDevice.memory` if "
            "it is set; for prepare and export, `cpuPods.limits.memory` in the chart, or the "
            "default of the namespace's LimitRange.",
        ),
        Reason(
            "PeerLost",
            "train",
            "A rank lost the connection to another one, and no pod reported the cause.",
            "Check the other pods of the attempt and the network between the nodes.",
        ),
        Reason(
            "RankFailed",
            "train",
            "A training process ended without a result, usually because the kernel killed it.",
            "Check the pod's last log lines and its memory limit.",
        ),
        Reason(
            "RankStalled",
            "train",
            "A rank has sent no heartbeat for too long, and was replaced with the attempt.",
            "Check that pod and its node: a device that hangs, a volume that does not answer, or a "
            "process that was stopped.",
        ),
        Reason(
            "RefusedByNode",
            ANY,
            "The kubelet refused to run a scheduled pod, for example because a device is missing.",
            "Run `kubectl describe node NAME`.",
        ),
        Reason(
            "RendezvousFailed",
            "train",
            "The training processes did not find each other.",
            "Check that all pods of the attempt started, and read their logs.",
        ),
        Reason(
            "RendezvousTimeout",
            "train",
            "The host name of the first pod has no address.",
            "Check the other pods of the attempt and the cluster's DNS.",
        ),
        Reason(
            "SourceUnavailable",
            "prepare",
            "A model or data source does not answer. In the first hour of the stage this does not "
            "count as a restart.",
            "Check that pods can reach it: proxy, network policy, DNS.",
        ),
        Reason(
            "TrainedWeightsChanged",
            "evaluate, export",
            "The files of the trained weights are not those that training wrote.",
            "Check the workspace's storage, and run the job again.",
        ),
        Reason(
            "VolumeUnavailable",
            ANY,
            "A volume returns errors, is read-only or is gone.",
            "Check the workspace's volume and its mount on the node.",
        ),
        Reason(
            "WorkspaceFull",
            "prepare",
            "The workspace has less free space than a download needs.",
            "Enlarge the workspace's claim, or delete jobs and release artifacts that are no "
            "longer needed.",
        ),
        Reason(
            "WrongWorldSize",
            "train",
            "Another number of processes joined than the plan has.",
            "Read the logs of the attempt's pods.",
        ),
    ),
)

"""What an object waits for."""

from finetune_api.reasons.reason import ALL_KINDS, BOTH, ENDPOINT, JOB, Group, Reason

WAITING = Group(
    "Waiting",
    "The condition `Stalled` is `True` with this reason, `status.message` says what is "
    "missing, and a Warning event records it. The object continues by itself when the cause "
    "is gone.",
    (
        Reason(
            "ApiError",
            BOTH,
            "The API server or an admission webhook returns an error for a write of the operator.",
            "Read the message; check the webhook that it names. The operator tries again.",
        ),
        Reason(
            "ClaimNotFound",
            ENDPOINT,
            "The PersistentVolumeClaim of `spec.artifact.uri` does not exist.",
            "Create the claim, or correct `spec.artifact.uri`.",
        ),
        Reason(
            "ContainerNotCreated",
            JOB,
            "The kubelet cannot create the container of a pod, for example because a Secret lacks "
            "a key.",
            "Correct what the message names.",
        ),
        Reason(
            "CrashLoopBackOff",
            ENDPOINT,
            "A container of the revision has ended and the kubelet waits before it restarts it. "
            "After three ends the revision fails with `CrashLoop`.",
            "Read the message and the pod's log.",
            from_kubernetes=True,
        ),
        Reason(
            "CreateContainerConfigError",
            ENDPOINT,
            "The kubelet cannot configure a container of the revision.",
            "Correct what the message names.",
            from_kubernetes=True,
        ),
        Reason(
            "CreateContainerError",
            ENDPOINT,
            "The container runtime cannot create a container of the revision.",
            "Read the message; check the node.",
            from_kubernetes=True,
        ),
        Reason(
            "EndpointPinned",
            JOB,
            "The ModelEndpoint that `serve.endpoint` names has another model in `spec.artifact`, "
            "and a job never changes it.",
            "Set `spec.artifact` to the `uri` and `digest` of the job's `status.artifact`, remove "
            "it so that the endpoint follows its jobs, or remove `serve` from the job.",
        ),
        Reason(
            "ErrImageNeverPull",
            ENDPOINT,
            "The image is not on the node, and the pull policy is `Never`.",
            "Load the image onto the nodes, or set the chart value `imagePullPolicy`.",
            from_kubernetes=True,
        ),
        Reason(
            "ErrImagePull",
            ENDPOINT,
            "The kubelet cannot pull the serving image.",
            "Check the profile's `serving.image`, the pull Secrets and the registry.",
            from_kubernetes=True,
        ),
        Reason(
            "FactsMissing",
            JOB,
            "`status.model` or `status.data` was removed from the status, and training needs it.",
            "Delete the job and create it again.",
        ),
        Reason(
            "FailedCreate",
            ENDPOINT,
            "The revision's Deployment cannot create pods, for example because of a quota.",
            "Raise the quota, or correct what the message names.",
            from_kubernetes=True,
        ),
        Reason(
            "Forbidden",
            BOTH,
            "The API server forbids a write of the operator: RBAC, a quota, an admission policy, "
            "or a namespace that is being deleted.",
            "Correct what the message names. The operator tries again.",
        ),
        Reason(
            "ImagePullBackOff",
            ENDPOINT,
            "The kubelet could not pull the serving image and waits before it tries again.",
            "Check the profile's `serving.image`, the pull Secrets and the registry.",
            from_kubernetes=True,
        ),
        Reason(
            "ImagePullFailed",
            JOB,
            "The kubelet cannot pull the trainer image.",
            "Check the trainer image and the pull Secrets in the chart values, and the registry.",
        ),
        Reason(
            "InternalError",
            BOTH,
            "The operator raised an exception for this object. It tries again.",
            "Read the operator's log, and report the error.",
        ),
        Reason(
            "InvalidArtifact",
            ENDPOINT,
            "`spec.artifact.uri` is not `pvc://claim/folder`, or its path has `.` or `..` in it.",
            "Correct `spec.artifact.uri`.",
        ),
        Reason(
            "InvalidImageName",
            ENDPOINT,
            "The name of the serving image is not valid.",
            "Correct `serving.image` in the AcceleratorProfile.",
            from_kubernetes=True,
        ),
        Reason(
            "InvalidSpec",
            BOTH,
            "The operator cannot read the spec, usually because it is older than the installed "
            "CRDs.",
            "Upgrade the operator, or correct the field that the message names.",
        ),
        Reason(
            "NameTaken",
            BOTH,
            "A child's name belongs to another object: for a job usually to an earlier job of the "
            "same name that is being deleted, for an endpoint to another Service.",
            "Wait for the deletion, delete the other object, or choose another name.",
        ),
        Reason(
            "NoAnswer",
            ENDPOINT,
            "The pods of the revision are Ready, and the operator has had no answer from one for a "
            "minute.",
            "Check network policies between the operator's namespace and the pods, and the pod's "
            "log.",
        ),
        Reason(
            "PlanMissing",
            JOB,
            "run.json of the attempt has no plan.",
            "Delete the job and create it again.",
        ),
        Reason(
            "PodsNotCreated",
            JOB,
            "The Job controller has created too few pods, usually because the API server refuses "
            "them: a quota, a LimitRange or an admission policy. The message quotes its answer.",
            "Correct the cause that the message names; without one, run `kubectl describe job "
            "NAME`. Where a quota asks for limits, set `limitsPerDevice` in the AcceleratorProfile "
            "and `cpuPods.limits` in the chart.",
        ),
        Reason(
            "PodsOrphaned",
            JOB,
            "The Job of an attempt was deleted without its pods (`--cascade=orphan`); they run, "
            "and the next attempt would train alongside them.",
            "Delete the pods that the message names, or wait for them.",
        ),
        Reason(
            "ProfileAmbiguous",
            ALL_KINDS,
            "Several AcceleratorProfiles are marked as default. Jobs and endpoints that name none "
            "wait.",
            "Leave `default: true` on one of them, or name a profile in the spec.",
        ),
        Reason(
            "ProfileInvalid",
            ALL_KINDS,
            "The operator cannot read the AcceleratorProfile, usually because it is older than the "
            "installed CRDs.",
            "Upgrade the operator, or correct the field that the message names.",
        ),
        Reason(
            "ProfileNotFound",
            BOTH,
            "The AcceleratorProfile that the spec names does not exist, or the spec names none and "
            "no profile is marked as default.",
            "Create the profile, name another one, or set `default: true` on one.",
        ),
        Reason(
            "Refused",
            BOTH,
            "The API server rejects an object of the operator as invalid.",
            "Read the message; check that operator and CRDs have the same version.",
        ),
        Reason(
            "RunContainerError",
            ENDPOINT,
            "The container runtime cannot start a container of the revision.",
            "Read the message; check the node.",
            from_kubernetes=True,
        ),
        Reason(
            "SchedulingGated",
            ENDPOINT,
            "A component of the cluster holds the pod back from scheduling.",
            "Check the controller that set the pod's scheduling gates.",
            from_kubernetes=True,
        ),
        Reason(
            "SecretNotFound",
            JOB,
            "A Secret that the spec names does not exist in the job's namespace.",
            "Create the Secret.",
        ),
        Reason(
            "ServiceAccountNotAllowed",
            JOB,
            "`spec.serviceAccountName` is not among the ServiceAccounts that the installation lets "
            "jobs use.",
            "Leave the field out, name one that the message lists, or add it to "
            "`trainer.serviceAccounts` of the chart.",
        ),
        Reason(
            "TooManyDevices",
            ENDPOINT,
            "`spec.gpus` is more than a node of the AcceleratorProfile has.",
            "Lower `spec.gpus`, or name another profile.",
        ),
        Reason(
            "Unschedulable",
            BOTH,
            "The scheduler has found no node for a pod for `scaleUpSeconds` of the chart; until "
            "then `Reconciling` has this reason. The message says what the nodes lack.",
            "Free or add nodes, or correct the profile's `nodeSelector` and `tolerations`.",
        ),
        Reason(
            "VolumeClaimLost",
            JOB,
            "The PersistentVolumeClaim of a `pvc://` source has lost its volume.",
            "Restore the volume, or create the claim again with its data.",
        ),
        Reason(
            "VolumeClaimNotBound",
            JOB,
            "A PersistentVolumeClaim has no volume yet.",
            "Run `kubectl describe pvc`; check its StorageClass and provisioner.",
        ),
        Reason(
            "VolumeClaimNotFound",
            JOB,
            "The PersistentVolumeClaim of a `pvc://` source does not exist in the job's namespace.",
            "Create the claim.",
        ),
        Reason(
            "WaitingForJanitor",
            BOTH,
            "A janitor cleans the workspace that began before the artifact was needed.",
            "",
        ),
        Reason(
            "WorkspaceLost",
            JOB,
            "The workspace's PersistentVolumeClaim has lost its volume.",
            "Restore the volume, or delete the claim to begin with an empty one.",
        ),
        Reason(
            "WorkspaceNotShared",
            JOB,
            "The job trains on several nodes, and the workspace's claim is not ReadWriteMany.",
            "Make the claim ReadWriteMany, or set `compute.nodes` to 1.",
        ),
        Reason(
            "WorkspaceTerminating",
            JOB,
            "The workspace's PersistentVolumeClaim is being deleted.",
            "Wait until no pod uses it; the operator creates it again.",
        ),
    ),
)

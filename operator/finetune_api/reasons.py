"""Every reason that a user can meet in a condition, an event or a failure, and what to do about it.

docs/reasons.md is generated from this table. tests/unit/api/test_reasons.py compares it with the
reasons that the operator and the trainer produce, so a new reason needs a row here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One reason in CamelCase."""

    name: str
    where: str
    """Stage that fails, or kind of the object that waits."""
    meaning: str
    remedy: str
    """What the user does; empty where there is nothing to do."""
    from_kubernetes: bool = False
    """Whether the operator copies the reason from the status of a pod or a Deployment."""


@dataclass(frozen=True)
class Group:
    """Reasons that appear in the same places."""

    title: str
    intro: str
    """Where the reasons of the group appear, and what happens next, in Markdown."""
    reasons: tuple[Reason, ...]


JOB, ENDPOINT, BOTH = "FineTuneJob", "ModelEndpoint", "both"
ANY = "any stage"

WAITING = (
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
        "The kubelet cannot create the container of a pod, for example because a Secret lacks a "
        "key.",
        "Correct what the message names.",
    ),
    Reason(
        "CrashLoopBackOff",
        ENDPOINT,
        "A container of the revision has ended and the kubelet waits before it restarts it. After "
        "three ends the revision fails with `CrashLoop`.",
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
        "The API server forbids a write of the operator: RBAC, a quota, an admission policy, or a "
        "namespace that is being deleted.",
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
        "The operator cannot read the spec, usually because it is older than the installed CRDs.",
        "Upgrade the operator, or correct the field that the message names.",
    ),
    Reason(
        "NameTaken",
        BOTH,
        "A child's name belongs to another object: for a job usually to an earlier job of the same "
        "name that is being deleted, for an endpoint to another Service.",
        "Wait for the deletion, delete the other object, or choose another name.",
    ),
    Reason(
        "NoAnswer",
        ENDPOINT,
        "The pods of the revision are Ready, and the operator has had no answer from one for a "
        "minute.",
        "Check network policies between the operator's namespace and the pods, and the pod's log.",
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
        "The Job controller has created too few pods, usually because of a quota or an admission "
        "policy.",
        "Run `kubectl describe job NAME` with the name in the message, and correct the cause.",
    ),
    Reason(
        "ProfileAmbiguous",
        BOTH,
        "Several AcceleratorProfiles are marked as default.",
        "Leave `default: true` on one of them, or name a profile in the spec.",
    ),
    Reason(
        "ProfileInvalid",
        BOTH,
        "The operator cannot read the AcceleratorProfile, usually because it is older than the "
        "installed CRDs.",
        "Upgrade the operator, or correct the field that the message names.",
    ),
    Reason(
        "ProfileNotFound",
        BOTH,
        "The AcceleratorProfile that the spec names does not exist, or the spec names none and no "
        "profile is marked as default.",
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
        "TooManyDevices",
        ENDPOINT,
        "`spec.gpus` is more than a node of the AcceleratorProfile has.",
        "Lower `spec.gpus`, or name another profile.",
    ),
    Reason(
        "Unschedulable",
        BOTH,
        "The scheduler finds no node for a pod; the message says what the nodes lack.",
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
)

INPUT = (
    Reason(
        "AccessDenied",
        "prepare",
        "The credentials give no read access to an address.",
        "Put credentials with read access into a Secret and name it in `credentialsSecret`.",
    ),
    Reason(
        "AnswerTooLong",
        "prepare",
        "`grpo.maxNewTokens` leaves no tokens of `training.maxSequenceLength` for the prompt.",
        "Raise `training.maxSequenceLength`, or lower `grpo.maxNewTokens`.",
    ),
    Reason(
        "BadAddress",
        "prepare",
        "An address has a form that its source does not support.",
        "Correct the `uri` that the message names.",
    ),
    Reason(
        "BadChatTemplate",
        "prepare",
        "`model.tokenizer.chatTemplate` cannot be rendered.",
        "Render a conversation of user and assistant with it, and correct it.",
    ),
    Reason(
        "BadConversation",
        "prepare",
        "The turns of a conversation cannot be learned from: order, roles, tools or parts that "
        "are not text.",
        "Correct the row; the message says what is wrong.",
    ),
    Reason(
        "BadHoldout",
        "prepare",
        "`dataset.holdout` leaves no row to train on, or none to evaluate on.",
        "Change the percentage, or set `dataset.validation`.",
    ),
    Reason(
        "BadPattern",
        "prepare",
        "The pattern of a reward `regex` is not a regular expression, or takes too long.",
        "Correct the pattern; avoid a repetition inside a repetition.",
    ),
    Reason(
        "BadRunConfig",
        ANY,
        "The trainer cannot read run.json: the trainer image does not belong to the operator.",
        "Install operator and trainer image of the same release.",
    ),
    Reason(
        "BadSpecialToken",
        "prepare",
        "A token of `model.tokenizer.specialTokens` is blank or in the vocabulary already.",
        "Leave the token out, or spell it in another way.",
    ),
    Reason(
        "BatchTooSmall",
        "train",
        "`training.batchSize` is less than one micro-batch on each device.",
        "Raise `training.batchSize` as the message says, or use fewer devices.",
    ),
    Reason(
        "BrokenArchive",
        "prepare",
        "A model archive cannot be unpacked.",
        "Pack it again as .tar, .tar.gz or .zip, and check that the upload is complete.",
    ),
    Reason(
        "BrokenFile",
        "prepare",
        "A data file cannot be read.",
        "Upload the file again.",
    ),
    Reason(
        "BrokenRow",
        "prepare",
        "A row is not valid JSON, CSV or Parquet.",
        "Correct the file at the line in the message.",
    ),
    Reason(
        "CannotCompile",
        "train",
        "torch.compile does not work on this machine.",
        "Set `training.compile` to false, or use an image with a C++ compiler or Triton.",
    ),
    Reason(
        "ChatTemplateUnsupported",
        "prepare",
        "The chat template cannot be split into prompts and answers.",
        "Put `{% generation %}` marks around the assistant's part of the template.",
    ),
    Reason(
        "ContextTooLong",
        "prepare, train",
        "`training.maxSequenceLength`, or with GRPO prompt and answer, exceeds the model's context "
        "length.",
        "Lower the length that the message names, or set `model.rope`.",
    ),
    Reason(
        "DatasetNotFound",
        "prepare",
        "There is no data set at the address.",
        "Correct the `uri`; a private data set needs a `credentialsSecret`.",
    ),
    Reason(
        "DeadlineExceeded",
        ANY,
        "The job has not ended `activeDeadlineSeconds` after its start.",
        "Create a job with a later deadline or fewer steps.",
    ),
    Reason(
        "DeploymentFailed",
        "serve",
        "The endpoint's new revision failed; the revision before it still gets the traffic.",
        "Run `kubectl describe mep NAME`; the [endpoint's reason](#a-revision-failed) says more.",
    ),
    Reason(
        "DoesNotFit",
        "train, serve",
        "The model does not fit into the memory of the profile's devices.",
        "Take one of the changes that the message proposes.",
    ),
    Reason(
        "EmptyDataset",
        "prepare, train",
        "The training data has no row, or none is left after preparation.",
        "Check the upload and `dataset.train`; add rows, or hold out fewer.",
    ),
    Reason(
        "EmptyText",
        "prepare",
        "A text of a row is empty.",
        "Fill it, or remove the row.",
    ),
    Reason(
        "EqualAnswers",
        "prepare",
        "Both answers of a preference are the same, or the same up to "
        "`training.maxSequenceLength`.",
        "Remove the row, or raise `training.maxSequenceLength`.",
    ),
    Reason(
        "ExpertsNotAdaptable",
        "prepare, train",
        "The architecture does not keep a layer's experts in one weight, so adapters cannot be put "
        "on them.",
        "Set `method.moe.experts` to false, or `method.type` to Full.",
    ),
    Reason(
        "GateNotMet",
        "evaluate",
        "The tuned model missed a rule of `evaluation.gate`.",
        "Read the answers in the evaluation report; train longer or on better data, or lower the "
        "gate.",
    ),
    Reason(
        "HostMemoryTooSmall",
        "train",
        "Loading, copies for checkpoints and offloading need more host memory than the profile "
        "has.",
        "Take one of the changes that the message proposes.",
    ),
    Reason(
        "LossDiverged",
        "train",
        "The loss has been far above its best value for many steps.",
        "Lower `training.learningRate`, raise `training.warmupRatio` or lower "
        "`training.maxGradNorm`; check the data for broken rows.",
    ),
    Reason(
        "LossNotFinite",
        "train, evaluate",
        "The loss or the gradients became infinite or NaN.",
        "Lower `training.learningRate`, raise `training.warmupRatio`, or use bf16 or fp32.",
    ),
    Reason(
        "MissingColumn",
        "prepare",
        "A row lacks a column that its format needs.",
        "Name your columns in `dataset.columns`, or rename them.",
    ),
    Reason(
        "MixedFormats",
        "prepare",
        "The sources of the job have different formats.",
        "Give all sources one format, or set `dataset.format` and `dataset.columns`.",
    ),
    Reason(
        "ModelIncomplete",
        "prepare, train",
        "The model lacks a file or weights.",
        "Upload the whole model, with config.json, tokenizer and all safetensors files.",
    ),
    Reason(
        "ModelNotFound",
        "prepare",
        "There is no model at the address.",
        "Correct `model.uri`; a private model needs a `credentialsSecret`.",
    ),
    Reason(
        "NoChatTemplate",
        "prepare",
        "The data has conversations, and the model has no chat template.",
        "Set `model.tokenizer.chatTemplate`, use the instruct release of the model, or give prompt "
        "and completion columns.",
    ),
    Reason(
        "NoRewardHead",
        "prepare",
        "transformers has no sequence classifier of the model's architecture, which objective "
        "Reward needs.",
        "Use another model, such as a Llama, Qwen, Mistral or Gemma.",
    ),
    Reason(
        "NotAnArtifact",
        "prepare",
        "A `pvc://` address of the workspace is not that of an artifact.",
        "Use `status.artifact.uri` of a FineTuneJob, or a claim of your own.",
    ),
    Reason(
        "NotARewardModel",
        "prepare",
        "`grpo.rewardModel`, or with objective Reward `model`, is not a classifier with one "
        "output.",
        "Use the artifact of a Reward job, or a classifier with one output.",
    ),
    Reason(
        "NotEnoughDevices",
        "train",
        "`compute.gpusPerNode` is more than the profile's nodes have.",
        "Lower `compute.gpusPerNode`, and raise `compute.nodes`.",
    ),
    Reason(
        "NothingToLearn",
        "prepare",
        "No token of a row belongs to an answer.",
        "Remove the row.",
    ),
    Reason(
        "NotMixtureOfExperts",
        "prepare",
        "`method.moe` is set, and the model has no experts.",
        "Leave `method.moe` out.",
    ),
    Reason(
        "NotUTF8",
        "prepare",
        "A file or a text is not UTF-8.",
        "Save it as UTF-8.",
    ),
    Reason(
        "OutOfMemory",
        ANY,
        "A device or the process has no memory left.",
        "Lower `training.microBatchSize` or `training.maxSequenceLength`, turn on "
        "`training.gradientCheckpointing`, or use ZeRO3 or FSDP on more devices.",
    ),
    Reason(
        "PackingUnsupported",
        "prepare, train",
        "In the model's architecture the examples of a packed sequence attend to each other.",
        "Leave `training.packing` out.",
    ),
    Reason(
        "PathEscape",
        "prepare",
        "A path or a link leads out of its folder or claim.",
        "Use plain relative paths, and replace the link by its file.",
    ),
    Reason(
        "PrecisionUnsupported",
        "train",
        "DeepSpeed has no fp16 on CPUs.",
        "Set `training.precision` to bf16 or fp32, or `compute.strategy` to DDP or FSDP.",
    ),
    Reason(
        "PromptTooLong",
        "prepare",
        "A prompt leaves no tokens for the answer.",
        "Shorten the prompt, remove the row, or raise `training.maxSequenceLength`.",
    ),
    Reason(
        "ReferenceMissing",
        "prepare",
        "A prompt has no reference, which a reward function compares with.",
        "Name its column in `dataset.columns.reference`, or use other rewards.",
    ),
    Reason(
        "RevisionNotFound",
        "prepare",
        "The hf:// address has no such revision.",
        "Set `revision` to a branch, tag or commit that exists.",
    ),
    Reason(
        "RewardNotFinite",
        "train, evaluate",
        "A reward is infinite or NaN.",
        "Check the reward model: it may need fp32, or its tokenizer may be another model's.",
    ),
    Reason(
        "RopeUnsupported",
        "prepare",
        "`model.rope` needs one kind of rotary positions that are not scaled yet.",
        "Leave `model.rope` out.",
    ),
    Reason(
        "SourceWithoutShare",
        "prepare",
        "A source of the mixture would give no example to an epoch.",
        "Raise its weight or `dataset.temperature`, or leave the source out.",
    ),
    Reason(
        "Superseded",
        "serve",
        "The endpoint got another artifact before this one got the traffic.",
        "Set `spec.artifact` of the endpoint to this job's artifact if you want this model.",
    ),
    Reason(
        "TooFewRows",
        "prepare",
        "The data has too few distinct rows to train and evaluate on.",
        "Add rows, or give validation data that is not part of the training data.",
    ),
    Reason(
        "UnknownTargetModule",
        "prepare, train",
        "`targetModules` has a name that no layer of the model has.",
        "Use names that the message lists, or `all-linear`.",
    ),
    Reason(
        "UnknownToken",
        "prepare",
        "The chat template writes a special token that the model does not have.",
        "Add it to `model.tokenizer.specialTokens`, or use the model's own tokens.",
    ),
    Reason(
        "UnsafeArchive",
        "prepare",
        "A model archive has links, devices or paths that lead out of it.",
        "Pack only plain files with relative names.",
    ),
    Reason(
        "UnsupportedFormat",
        "prepare",
        "A data source is not, and does not contain, a file of rows.",
        "Use .jsonl, .json, .csv or .parquet.",
    ),
    Reason(
        "UnsupportedModel",
        "prepare, train",
        "The model's architecture or tokenizer is not supported.",
        "Use a causal language model that transformers supports without remote code.",
    ),
    Reason(
        "UnusedColumn",
        "prepare",
        "`dataset.columns` names a column that the format does not have.",
        "Leave it out, or set `dataset.format`.",
    ),
    Reason(
        "WorkspaceTooSmall",
        "train",
        "The workspace has less free space than checkpoints, weights and artifact need.",
        "Take one of the changes that the message proposes.",
    ),
    Reason(
        "WrongType",
        "prepare",
        "A value of a row has another type than its column needs.",
        "Correct the row; the message says what is expected.",
    ),
)

FAILED = (
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
        "Enlarge the workspace or delete jobs, raise the profile's `sharedMemory`, or free disk "
        "space on the node.",
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
        "Raise `hostMemoryPerDevice` in the AcceleratorProfile.",
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
        "A model or data source does not answer.",
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
        "Enlarge the workspace's claim, or delete jobs that are no longer needed.",
    ),
    Reason(
        "WrongWorldSize",
        "train",
        "Another number of processes joined than the plan has.",
        "Read the logs of the attempt's pods.",
    ),
)

DISRUPTED = (
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
)

REVISION = (
    Reason(
        "BlockedByFailedLoad",
        ENDPOINT,
        "KServe reports that the model failed to load.",
        "Read the message and the pod's log.",
    ),
    Reason(
        "CrashLoop",
        ENDPOINT,
        "A container of the revision ended three times; the message has the last error of its log.",
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
        "Raise `hostMemoryPerDevice` in the AcceleratorProfile.",
    ),
    Reason(
        "ParityMismatch",
        ENDPOINT,
        "A pod's answer to the probe differs from the recorded one, so it does not serve the model "
        "that was evaluated.",
        "Compare the serving image, `serving.dtype` and `serving.args` of the profile with those "
        "of the evaluation; check the artifact's files.",
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
)

STATES = (
    Reason("Clear", ENDPOINT, "`Stalled` is `False`: nothing is missing.", ""),
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
    Reason("Queued", JOB, "Training waits until all its pods run, or for its next attempt.", ""),
    Reason("RevisionActive", ENDPOINT, "The active revision answers.", ""),
    Reason("RollingOut", ENDPOINT, "The operator brings a revision or its pods up.", ""),
    Reason("Running", JOB, "The stage of the condition runs.", ""),
    Reason("Settled", ENDPOINT, "`Reconciling` is `False`: the endpoint is as its spec says.", ""),
    Reason("Succeeded", JOB, "The job, or the stage of the condition, succeeded.", ""),
    Reason(
        "Suspended",
        JOB,
        "Nothing of the job runs because `spec.suspend` is true.",
        "Set `spec.suspend` to false to resume.",
    ),
    Reason("Training", JOB, "All training pods run.", ""),
)

EVENTS = (
    Reason(
        "NodeExcluded",
        JOB,
        "Warning. Two attempts ended because of a node; the next ones run elsewhere.",
        "Check the node.",
    ),
    Reason("Planned", JOB, "Normal. The planner chose how to train; the message has the plan.", ""),
    Reason("Resumed", JOB, "Normal. The job continues after a suspension.", ""),
    Reason("RevisionActive", ENDPOINT, "Normal. A revision gets the traffic from now on.", ""),
    Reason(
        "RevisionFailed",
        ENDPOINT,
        "Warning. A revision failed; the message has the [reason](#a-revision-failed).",
        "Follow the remedy of that reason.",
    ),
    Reason("RevisionStarting", ENDPOINT, "Normal. The operator starts a new revision.", ""),
)

GROUPS = (
    Group(
        "Waiting",
        "The condition `Stalled` is `True` with this reason, `status.message` says what is "
        "missing, and a Warning event records it. The object continues by itself when the cause "
        "is gone.",
        WAITING,
    ),
    Group(
        "The job failed because of its input or settings",
        "`status.failure` has the reason, the message, file and line where they are known, and the "
        "remedy. The conditions `Succeeded` (`False`) and `Stalled` (`True`) and that of the stage "
        "have the same reason, and a Warning event records it. The operator does not try again: "
        "create a new FineTuneJob.",
        INPUT,
    ),
    Group(
        "An attempt failed",
        "`status.failure` and a Warning event have the reason. The operator starts the next "
        "attempt after a delay, from the newest checkpoint, and counts one restart. When "
        "`maxRestarts` are used up, the job fails with this reason.",
        FAILED,
    ),
    Group(
        "An attempt was interrupted",
        "As above, but the cluster or a user ended the attempt, so it does not count as a restart "
        "and the job continues however often it happens.",
        DISRUPTED,
    ),
    Group(
        "A revision failed",
        "The revision's state is `Failed`, its message begins with the reason, and `Stalled` is "
        "`True` with it. The revision before keeps the traffic. The operator does not try the same "
        "revision again: correct the cause, and change the artifact, the profile or the endpoint, "
        "which makes a new revision.",
        REVISION,
    ),
    Group(
        "States",
        "Reasons of conditions of an object on its way or at its end. A FineTuneJob also records a "
        "Normal event with the new phase as its reason when the phase changes.",
        STATES,
    ),
    Group("Events only", "", EVENTS),
)
REASONS = tuple(reason for group in GROUPS for reason in group.reasons)

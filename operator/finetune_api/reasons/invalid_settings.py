"""Why a job fails for good: settings of training, hardware that does not suffice, and serving."""

from finetune_api.reasons.reason import ANY, Reason

SETTINGS = (
    Reason(
        "AnswerTooLong",
        "prepare",
        "`grpo.maxNewTokens` leaves no tokens of `training.maxSequenceLength` for the prompt.",
        "Raise `training.maxSequenceLength`, or lower `grpo.maxNewTokens`.",
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
        "BatchTooSmall",
        "train",
        "`training.batchSize` is less than one micro-batch on each device.",
        "Raise `training.batchSize` as the message says, or use fewer devices.",
    ),
    Reason(
        "CannotCompile",
        "train",
        "torch.compile does not work on this machine.",
        "Set `training.compile` to false, or use an image with a C++ compiler or Triton.",
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
        "The endpoint's new revision failed; the revision before it, if any, still gets the "
        "traffic.",
        "Run `kubectl describe mep NAME`; the [endpoint's reason](#a-revision-failed) says more.",
    ),
    Reason(
        "DoesNotFit",
        "train, export, serve",
        "The model does not fit into the memory of the profile's devices, or its export into "
        "that of pods without devices.",
        "Take one of the changes that the message proposes.",
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
        "The loss or the gradients became infinite or NaN, the second time after an attempt on "
        "another node.",
        "Lower `training.learningRate`, raise `training.warmupRatio`, or use bf16 or fp32.",
    ),
    Reason(
        "NotEnoughDevices",
        "train",
        "`compute.gpusPerNode` is more than the profile's nodes have.",
        "Lower `compute.gpusPerNode`, and raise `compute.nodes`.",
    ),
    Reason(
        "OutOfMemory",
        ANY,
        "A device or the process has no memory left; in training and evaluation a second time, "
        "after a first attempt on another node.",
        "Lower `training.microBatchSize` or `training.maxSequenceLength`, turn on "
        "`training.gradientCheckpointing`, or use ZeRO3 or FSDP on more devices.",
    ),
    Reason(
        "PrecisionUnsupported",
        "train",
        "DeepSpeed has no fp16 on CPUs.",
        "Set `training.precision` to bf16 or fp32, or `compute.strategy` to DDP or FSDP.",
    ),
    Reason(
        "RewardNotFinite",
        "train, evaluate",
        "A reward is infinite or NaN.",
        "Check the reward model: it may need fp32, or its tokenizer may be another model's.",
    ),
    Reason(
        "Superseded",
        "serve",
        "The endpoint got the model of a younger job, or another `spec.artifact`, before this "
        "job's model got the traffic.",
        "Set `spec.artifact` of the endpoint to this job's artifact if you want this model.",
    ),
    Reason(
        "WorkspaceTooSmall",
        "train",
        "The workspace has less free space than checkpoints, weights and artifact need.",
        "Take one of the changes that the message proposes.",
    ),
)

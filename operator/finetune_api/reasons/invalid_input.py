"""Why a job fails for good: its input or its settings."""

from finetune_api.reasons.reason import ANY, Group, Reason

INPUT = Group(
    "The job failed because of its input or settings",
    "`status.failure` has the reason, the message, file and line where they are known, and the "
    "remedy. The conditions `Succeeded` (`False`) and `Stalled` (`True`) and that of the stage "
    "have the same reason, and a Warning event records it. The operator does not try again: "
    "create a new FineTuneJob.",
    (
        Reason(
            "AccessDenied",
            "prepare",
            "The credentials give no read access to an address.",
            "Put credentials with read access into a Secret and name it in `credentialsSecretRef`.",
        ),
        Reason(
            "AdapterIncomplete",
            "prepare",
            "The folder of `model.adapter` lacks the config or the weights of an adapter.",
            "Give the folder into which PEFT saved a LoRA adapter, with "
            "`adapter_model.safetensors`.",
        ),
        Reason(
            "AdapterUnsupported",
            "prepare",
            "The adapter of `model.adapter` does not fit the model or `method`, or has settings "
            "that are not supported.",
            "Set `method` to the settings that the message lists, or merge the adapter into its "
            "base model and use the merged folder as the model.",
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
            "`model.tokenizer.chatTemplate` or `chatTemplateKwargs` cannot be used, or the model "
            "has several chat templates and no default, or one with a syntax error.",
            "Render a conversation of user and assistant with the template, and correct it; of "
            "several templates set the one to use in `model.tokenizer.chatTemplate`.",
        ),
        Reason(
            "BadConversation",
            "prepare",
            "The turns of a conversation cannot be learned from: order, roles, tools, parts that "
            "are not text, or the chat template refuses them.",
            "Correct the row; the message says what is wrong.",
        ),
        Reason(
            "BadGenerationConfig",
            "prepare, train",
            "The model's generation settings could not be saved with the tuned model.",
            "Correct `generation_config.json` of the model as the message says.",
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
            "BadTools",
            "prepare",
            "A description of a tool, or a call of one, has no name or no arguments that are JSON.",
            "Correct the row; the message shows the form.",
        ),
        Reason(
            "BaselineTooLong",
            "prepare",
            "No held-out prompt leaves space for all examples of a baseline in the model's "
            "context.",
            "Lower its `examples`, shorten its `systemPrompt`, or lower `evaluation.maxNewTokens`.",
        ),
        Reason(
            "BaselineUnsupported",
            "prepare",
            "The model's chat template refuses the prompt of a baseline.",
            "Leave out its `systemPrompt`, or use a model whose template takes it.",
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
            "A data file cannot be read, is a link to a missing file, or the README.md or the "
            "state.json that declares the files is malformed.",
            "Upload the file again, or correct it as the message describes.",
        ),
        Reason(
            "BrokenRow",
            "prepare",
            "A row is not valid in the format of its file.",
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
            "The chat template leaves out a part of a conversation, or cannot be split into "
            "prompts and answers.",
            "Set `model.tokenizer.chatTemplate` to a template that writes every part, and whose "
            "`add_generation_prompt` writes exactly the beginning of the assistant's turn.",
        ),
        Reason(
            "ConfigNotChosen",
            "prepare",
            "A data set declares several configurations and no default, or not the one of "
            "`config`.",
            "Set `config` of the source to one that the message lists.",
        ),
        Reason(
            "ContextTooLong",
            "prepare, train",
            "`training.maxSequenceLength`, or with GRPO prompt and answer, exceeds the model's "
            "context length.",
            "Lower the length that the message names, or set `model.rope`.",
        ),
        Reason(
            "DatasetNotFound",
            "prepare",
            "There is no data set at the address.",
            "Correct the `uri`; a private data set needs a `credentialsSecretRef`.",
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
            "Run `kubectl describe mep NAME`; the [endpoint's reason](#a-revision-failed) says "
            "more.",
        ),
        Reason(
            "DigestMismatch",
            "prepare",
            "The content of a data source is not the one that its `sha256` pins.",
            "Restore the files, or set `sha256` to the digest in the message.",
        ),
        Reason(
            "DoesNotFit",
            "train, export, serve",
            "The model does not fit into the memory of the profile's devices, or its export into "
            "that of pods without devices.",
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
            "The architecture does not keep a layer's experts in one weight, so adapters cannot be "
            "put on them.",
            "Set `method.moe.experts` to false, or `method.type` to Full.",
        ),
        Reason(
            "ForbiddenAddress",
            "prepare",
            "An address leads to a metadata service, a link-local address or the pod itself.",
            "Name another server; check redirects, DNS records and endpoints in Secrets.",
        ),
        Reason(
            "GateNotMet",
            "evaluate",
            "The tuned model missed a rule of `evaluation.gate`.",
            "Read the answers in the evaluation report; train longer or on better data, or lower "
            "the gate.",
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
            "LossNotComparable",
            "evaluate",
            "The held-out loss of the base model is 0, or all held-out rows have weight 0, so no "
            "improvement can be computed.",
            "Hold out rows of weights above 0 that the base model does not predict with certainty.",
        ),
        Reason(
            "LossNotFinite",
            "train, evaluate",
            "The loss or the gradients became infinite or NaN, the second time after an attempt on "
            "another node.",
            "Lower `training.learningRate`, raise `training.warmupRatio`, or use bf16 or fp32.",
        ),
        Reason(
            "MetricUnsupported",
            "prepare",
            "The held-out answers cannot have a metric of `evaluation.metrics` or the gate, as an "
            "answer is no JSON object or not one of the labels.",
            "Choose other metrics, correct the rows, or complete `evaluation.labels`.",
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
            "There is no model, or no adapter, at the address.",
            "Correct the `uri` of the field that the message names; what is private needs a "
            "`credentialsSecretRef`.",
        ),
        Reason(
            "NoChatTemplate",
            "prepare",
            "The data has conversations, and the model has no chat template.",
            "Set `model.tokenizer.chatTemplate`, use the instruct release of the model, or give "
            "prompt and completion columns.",
        ),
        Reason(
            "NoMatchingFiles",
            "prepare",
            "A data source has no files of the split or of the pattern in `files`, lacks a shard, "
            "or has names from which its splits are not clear.",
            "Set `split` or `files` of the source as the message describes.",
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
            "NotRows",
            "prepare",
            "The content of a data file does not fit its name: it is a pointer of Git LFS, a web "
            "page or an archive.",
            "Upload the file of rows itself, as the message describes.",
        ),
        Reason(
            "NotUTF8",
            "prepare",
            "A file, its name or a text is not UTF-8.",
            "Save the file as UTF-8, or rename it.",
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
            "RowTooLong",
            "prepare",
            "A row has more tokens than a sequence, and `dataset.longRows` is `Fail`.",
            "Raise `training.maxSequenceLength`, or set `dataset.longRows` to `Truncate` or "
            "`Skip`.",
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
            "The endpoint got the model of a younger job, or another `spec.artifact`, before this "
            "job's model got the traffic.",
            "Set `spec.artifact` of the endpoint to this job's artifact if you want this model.",
        ),
        Reason(
            "TiedModule",
            "prepare, train",
            "`method.lora.modulesToSave` has one of two modules that share a weight.",
            "Name both, which are then trained as one weight, or neither.",
        ),
        Reason(
            "TooFewExamples",
            "prepare",
            "A baseline has more `examples` than the training data has rows that can be examples.",
            "Lower its `examples`, or leave it out.",
        ),
        Reason(
            "TooFewHeldOutRows",
            "prepare",
            "A rule of `evaluation.gate` compares the lower end of an interval, and there are "
            "fewer than 8 held-out rows.",
            "Hold out more rows, raise `evaluation.maxSamples` or `evaluation.generations`, or set "
            "the rule's `statistic` to Estimate.",
        ),
        Reason(
            "TooFewRows",
            "prepare",
            "The data has too few distinct rows to train and evaluate on.",
            "Add rows, or give validation data that is not part of the training data.",
        ),
        Reason(
            "TooManyInvalidRows",
            "prepare",
            "More rows cannot be used than `dataset.invalidRows.max` allows.",
            "Correct the rows, or raise `dataset.invalidRows.max`.",
        ),
        Reason(
            "UnknownTargetModule",
            "prepare, train",
            "`targetModules` or `modulesToSave` has a name that no layer of the model has, or one "
            "that cannot be trained.",
            "Use names that the message lists; for `targetModules` also `all-linear`.",
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
            "A data source has no file of rows, has files in a format that is not read, or mixes "
            "text files with files of other formats.",
            "Use .jsonl, .json, .csv, .tsv or .txt, each also with .gz or .zst, or .parquet or "
            ".arrow; set `files` of the source to leave other files out.",
        ),
        Reason(
            "UnsupportedModel",
            "prepare, train",
            "The model's architecture or tokenizer is not supported, or the tokenizer does not "
            "give the data back.",
            "Use a causal language model that transformers supports without remote code, with its "
            "tokenizer.json.",
        ),
        Reason(
            "UnusableColumn",
            "prepare",
            "A column means something that the format or the model cannot use, such as images.",
            "Remove the column, name it in `dataset.columns`, or leave it out with "
            "`dataset.ignoreColumns`.",
        ),
        Reason(
            "UnusedColumn",
            "prepare",
            "`dataset.columns` names a column that the format does not have.",
            "Leave it out, or set `dataset.format`.",
        ),
        Reason(
            "VersionNotFound",
            "prepare",
            "The s3:// or gs:// object has no such version, or the bucket has no versions.",
            "Set `version` of the source to one that the bucket has, or pin the content with "
            "`sha256`.",
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
    ),
)

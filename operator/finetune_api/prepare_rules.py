"""Combinations of settings that depend on the model's files, the data or the pool.

The planner or a stage refuses them before training begins; docs/combinations.md lists them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrepareRule:
    """A combination refused before training, because it depends on model, data or pool."""

    reason: str
    """Reason of the failure, in CamelCase."""
    when: str
    """What is refused, in Markdown."""
    why: str
    """Why, and what to do."""


PREPARE_RULES: tuple[PrepareRule, ...] = (
    PrepareRule(
        "PackingUnsupported",
        "`training.packing: true` with an architecture whose packed examples attend to each other",
        "Its layers do not separate examples by position ids; leave `training.packing` out.",
    ),
    PrepareRule(
        "RopeUnsupported",
        "`model.rope` with an architecture without rotary positions, with several kinds of them, "
        "or whose positions are scaled already",
        "RoPE scaling needs one kind of unscaled rotary positions; leave `model.rope` out.",
    ),
    PrepareRule(
        "ContextTooLong",
        "`training.maxSequenceLength` (with GRPO it holds prompt and answer) above the model's "
        "context length, which `model.rope` multiplies by its factor",
        "The model has no such positions; lower `training.maxSequenceLength`, or set `model.rope`.",
    ),
    PrepareRule(
        "AnswerTooLong",
        "`grpo.maxNewTokens` that leaves no tokens of `training.maxSequenceLength` for the prompt",
        "Raise `training.maxSequenceLength`, or lower `grpo.maxNewTokens`.",
    ),
    PrepareRule(
        "TooFewHeldOutRows",
        "a rule of `evaluation.gate` with `statistic: Bound`, the default, and fewer than 8 "
        "held-out rows, or prompts that leave space for an answer in the model's context",
        "The lower end of an interval over so few says nothing; hold out more or shorter rows, "
        "lower `evaluation.maxNewTokens`, or set `statistic` to Estimate.",
    ),
    PrepareRule(
        "TooFewExamples",
        "a baseline of `evaluation.baselines` with more `examples` than there are training rows of "
        "user and assistant turns without tools and without the question of a held-out row",
        "Held-out rows cannot be examples; lower `examples`.",
    ),
    PrepareRule(
        "BaselineTooLong",
        "a baseline of `evaluation.baselines` whose examples do not fit into the model's context "
        "with the shortest held-out prompt and an answer",
        "Longer prompts would have fewer still; lower `examples`, or shorten `systemPrompt`.",
    ),
    PrepareRule(
        "BaselineUnsupported",
        "a baseline of `evaluation.baselines` whose `systemPrompt` the model's chat template "
        "refuses",
        "Some templates have no system turn; leave `systemPrompt` out.",
    ),
    PrepareRule(
        "MetricUnsupported",
        "`jsonFields` for answers that are no JSON objects; accuracy and F1 for more than 100 "
        "different answers, or one that `evaluation.labels` lacks; `macroF1` with a label that no "
        "held-out answer is; `preferenceAccuracy` of KTO with one kind of answers held out",
        "The metric is not defined; choose other metrics, or complete `evaluation.labels`.",
    ),
    PrepareRule(
        "MixedFormats",
        "sources of `dataset.train` and `dataset.validation` in different formats",
        "A job accepts one format; set `dataset.format` and `dataset.columns`, or run two jobs, "
        "the second from the artifact of the first.",
    ),
    PrepareRule(
        "NoChatTemplate",
        "rows in format `chat`, or prompts and answers of several turns, with a model that has no "
        "chat template",
        "Set `model.tokenizer.chatTemplate`, or use the instruct release of the model.",
    ),
    PrepareRule(
        "ExpertsNotAdaptable",
        "`method.moe.experts` with an architecture that does not keep a layer's experts in one "
        "weight",
        "Set `method.moe.experts` to false, or `method.type` to Full.",
    ),
    PrepareRule(
        "UnknownTargetModule",
        "`targetModules` with a name that no layer of the model has; `IA3` without `targetModules` "
        "where keys and values have unusual names",
        "Use names of the model's layers, which the message lists, or `all-linear`.",
    ),
    PrepareRule(
        "UnknownTargetModule",
        "`method.lora.modulesToSave` with a name that no embedding, head, norm or linear layer "
        "without an adapter has; of `QLoRA`'s linear layers only the head can be named",
        "A module is trained by an adapter or entirely; use names that the message lists.",
    ),
    PrepareRule(
        "TiedModule",
        "`method.lora.modulesToSave` with one of two modules that share a weight, such as "
        "`embed_tokens` without `lm_head`",
        "The model would no longer be tied; name both, which are then trained as one weight.",
    ),
    PrepareRule(
        "AdapterUnsupported",
        "`model.adapter` of another base model, with other settings or layers than `method.lora`, "
        "with settings that this version does not continue, or with another tokenizer",
        "Training would continue from something else; set `method` as the message lists it, or "
        "merge the adapter into its base model.",
    ),
    PrepareRule(
        "PrecisionUnsupported",
        "`training.precision: fp16` with ZeRO on a CPU pool",
        "DeepSpeed has no fp16 on CPUs; use bf16 or fp32, or strategy DDP or FSDP.",
    ),
    PrepareRule(
        "ReferenceMissing",
        "a reward `exactMatch`, `contains`, `numeric` or `rougeL` for a prompt without a reference",
        "These rewards compare with a reference; name its column in `dataset.columns.reference`, "
        "or use other rewards.",
    ),
    PrepareRule(
        "BadPattern",
        "a reward `regex` whose pattern is not a regular expression, or takes too long",
        "Patterns have the syntax of Python's `regex` library; correct the pattern, and avoid a "
        "repetition inside a repetition.",
    ),
    PrepareRule(
        "NotARewardModel",
        "`grpo.rewardModel` that is not a sequence classifier with one output",
        "Use the artifact of a Reward job, or another model for sequence classification with "
        "`num_labels` 1.",
    ),
    PrepareRule(
        "NotARewardModel",
        "`objective: Reward` with a classifier that has several outputs",
        "Use a language model, or a classifier with one output.",
    ),
    PrepareRule(
        "NoRewardHead",
        "`objective: Reward` with an architecture that has no sequence classifier in transformers",
        "Use another model, such as a Llama, Qwen, Mistral or Gemma.",
    ),
    PrepareRule(
        "NotMixtureOfExperts",
        "`method.moe` with a model that has no experts",
        "Leave `method.moe` out.",
    ),
)

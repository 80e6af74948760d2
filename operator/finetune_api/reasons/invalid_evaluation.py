"""Why a job fails for good: its evaluation and its gate."""

from finetune_api.reasons.reason import Reason

EVALUATION = (
    Reason(
        "BaselineTooLong",
        "prepare",
        "No held-out prompt leaves space for all examples of a baseline in the model's context.",
        "Lower its `examples`, shorten its `systemPrompt`, or lower `evaluation.maxNewTokens`.",
    ),
    Reason(
        "BaselineUnsupported",
        "prepare",
        "The model's chat template refuses the prompt of a baseline.",
        "Leave out its `systemPrompt`, or use a model whose template takes it.",
    ),
    Reason(
        "GateNotMet",
        "evaluate",
        "The tuned model missed a rule of `evaluation.gate`.",
        "Read the answers in the evaluation report; train longer or on better data, or lower "
        "the gate.",
    ),
    Reason(
        "LossNotComparable",
        "evaluate",
        "The held-out loss of the base model is 0, or all held-out rows have weight 0, so no "
        "improvement can be computed.",
        "Hold out rows of weights above 0 that the base model does not predict with certainty.",
    ),
    Reason(
        "MetricUnsupported",
        "prepare",
        "The held-out answers cannot have a metric of `evaluation.metrics` or the gate, as an "
        "answer is no JSON object or not one of the labels, or a class is never held out.",
        "Choose other metrics, correct the rows, or complete `evaluation.labels`.",
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
        "fewer than 8 held-out rows, or prompts that leave space for an answer.",
        "Hold out more or shorter rows, raise `evaluation.maxSamples` or "
        "`evaluation.generations`, lower `evaluation.maxNewTokens`, or set the rule's "
        "`statistic` to Estimate.",
    ),
)

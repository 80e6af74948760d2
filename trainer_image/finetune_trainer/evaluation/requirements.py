"""What evaluation needs of data and model, checked in prepare and not after training."""

from __future__ import annotations

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.metrics import METRICS

from finetune_trainer.data.message_forms import NO_CONTEXT
from finetune_trainer.data.pipeline import TargetModel
from finetune_trainer.data.prepared_dataset import PreparedDataset, to_line
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.samples import UnpairedPreferenceSample
from finetune_trainer.evaluation.baselines import make_prompters
from finetune_trainer.evaluation.metric_choice import choose_metrics
from finetune_trainer.evaluation.prompts import (
    list_references,
    max_answer_tokens,
    order_prompts,
    select_prompts,
)
from finetune_trainer.metrics.paired_bootstrap import MIN_ITEMS
from finetune_trainer.runtime.errors import UserError


def check_evaluation(prepared: PreparedDataset, target: TargetModel) -> None:
    """Raises UserError where the gate, a metric or a baseline cannot be evaluated on this data."""
    spec = prepared.inputs.spec
    check_gate(spec, len(prepared.held_out))
    check_preferences(prepared)
    choose_metrics(spec, list_references(spec, map(to_line, prepared.held_out)))
    check_baselines(prepared, target)
    check_prompts(prepared, target)


def check_gate(spec: FineTuneJobSpec, rows: int) -> None:
    """Raises UserError where `rows` held-out rows are too few for the lower end of an interval."""
    for number, rule in enumerate(spec.evaluation.gate):
        is_of_answers = METRICS[rule.metric].is_of_answers
        limit = spec.evaluation.generations if is_of_answers else spec.evaluation.max_samples
        if rule.statistic == "Bound" and min(rows, limit) < MIN_ITEMS:
            field = "generations" if is_of_answers else "maxSamples"
            raise UserError(
                "TooFewHeldOutRows",
                f"evaluation.gate[{number}] compares the lower end of an interval, for which "
                f"{min(rows, limit)} held-out rows are too few: {MIN_ITEMS} are needed.",
                f"Set its statistic to Estimate, or hold out more rows and set "
                f"evaluation.{field} to {MIN_ITEMS} or more.",
            )


def check_preferences(prepared: PreparedDataset) -> None:
    """Raises UserError where KTO has to compare answers of two kinds and holds out only one."""
    spec = prepared.inputs.spec
    evaluation = spec.evaluation
    requested = {*evaluation.metrics, *(rule.metric for rule in evaluation.gate)}
    if spec.objective != "KTO" or "preferenceAccuracy" not in requested:
        return
    # Imported late, because it imports torch.
    from finetune_trainer.evaluation.held_out_loss import choose_indices

    samples = [
        prepared.held_out[index].sample for index in choose_indices(spec, len(prepared.held_out))
    ]
    kinds = {each.is_desirable for each in samples if isinstance(each, UnpairedPreferenceSample)}
    if len(kinds) < 2:
        kind = "desirable" if True in kinds else "undesirable"
        raise UserError(
            "MetricUnsupported",
            f"The data cannot have preferenceAccuracy: all {len(samples)} held-out answers that "
            f"are evaluated are {kind}.",
            "Hold out answers of both kinds (dataset.holdout, dataset.validation), raise "
            "evaluation.maxSamples, or leave the metric out.",
        )


def check_prompts(prepared: PreparedDataset, target: TargetModel) -> None:
    """Raises UserError where too few held-out prompts leave space for an answer, or the chat
    template refuses one with a baseline."""
    spec = prepared.inputs.spec
    rules = [rule for rule in spec.evaluation.gate if METRICS[rule.metric].is_of_answers]
    if not rules and not spec.evaluation.baselines:
        return
    answer_tokens = max_answer_tokens(spec)
    longest = target.context_length - answer_tokens
    examples = [example.to_json() for example in prepared.examples]
    prompters = make_prompters(spec, examples, target.tokenizer, longest)
    order = order_prompts(spec, len(prepared.held_out))
    lines = (to_line(prepared.held_out[index]) for index in order)
    try:
        count = spec.evaluation.generations
        found = len(select_prompts(lines, prompters, target.tokenizer, longest, count))
    except RowError as error:
        raise UserError(
            "BaselineUnsupported",
            f"A held-out prompt cannot be written for a baseline of evaluation.baselines: "
            f"{error.message}.",
            "Leave out its systemPrompt, or use a model whose template takes it.",
        ) from None
    needed = max((MIN_ITEMS if rule.statistic == "Bound" else 1 for rule in rules), default=1)
    if found < needed:
        raise UserError(
            "TooFewHeldOutRows",
            f"Only {found} of {len(order)} held-out prompts leave space for an answer of "
            f"{answer_tokens} tokens in the model's context of {target.context_length}, and "
            f"{needed} are needed to compare answers.",
            "Lower evaluation.maxNewTokens or the examples of evaluation.baselines, or hold out "
            "shorter rows.",
        )


def check_baselines(prepared: PreparedDataset, target: TargetModel) -> None:
    """Raises UserError where the model cannot have the prompts of a baseline.

    Looks at the shortest held-out prompt: where that has no space for all examples, none has.
    """
    spec = prepared.inputs.spec
    if not spec.evaluation.baselines:
        return
    answer_tokens, context = max_answer_tokens(spec), target.context_length
    examples = [example.to_json() for example in prepared.examples]
    prompters = make_prompters(spec, examples, target.tokenizer, context - answer_tokens)
    prompts = (to_line(tokens)["messages"] for tokens in prepared.held_out)
    shortest = min(prompts, key=lambda turns: sum(len(turn["content"]) for turn in turns))
    for prompter in prompters:
        name = f"The baseline {prompter.name} of evaluation.baselines"
        try:
            prompt = prompter.write(shortest, NO_CONTEXT)
        except RowError as error:
            raise UserError(
                "BaselineUnsupported",
                f"{name} cannot be written: {error.message}.",
                "Leave out its systemPrompt, or use a model whose template takes it.",
            ) from None
        if prompt is None or prompt.examples < len(prompter.examples):
            fitting = f"only {prompt.examples} of its examples fit" if prompt else "it does not fit"
            raise UserError(
                "BaselineTooLong",
                f"{name} is too long: {fitting} into the model's context of {context} tokens with "
                f"the shortest held-out prompt and an answer of {answer_tokens}.",
                "Lower its examples, shorten its systemPrompt, or lower evaluation.maxNewTokens.",
            )

"""What evaluation needs of data and model, checked in prepare and not after training."""

from __future__ import annotations

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.metrics import METRICS

from finetune_trainer.data.answer_text import split_thought
from finetune_trainer.data.message_forms import NO_CONTEXT
from finetune_trainer.data.pipeline import TargetModel
from finetune_trainer.data.prepared_dataset import PreparedDataset, to_line
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.evaluation.baselines import make_prompters
from finetune_trainer.evaluation.metric_choice import choose_metrics
from finetune_trainer.evaluation.prompts import max_answer_tokens
from finetune_trainer.metrics.paired_bootstrap import MIN_ITEMS
from finetune_trainer.runtime.errors import UserError


def check_evaluation(prepared: PreparedDataset, target: TargetModel) -> None:
    """Raises UserError where the gate, a metric or a baseline cannot be evaluated on this data."""
    spec = prepared.inputs.spec
    check_gate(spec, len(prepared.held_out))
    lines = [to_line(tokens) for tokens in prepared.held_out] if spec.objective == "SFT" else []
    choose_metrics(spec, [split_thought(line["reference"])[1] for line in lines])
    check_baselines(prepared, target)


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

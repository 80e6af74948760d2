"""The model card of an artifact: README.md in the form that model hubs read."""

from typing import Any

from finetune_api.base import SpecModel
from finetune_api.evaluation import BASE
from finetune_api.finetunejob import AdaLoRA, LoRA, Method, Prefix, Quantization
from finetune_api.gate_report import format_interval, format_value
from finetune_api.method import without_adapter_dropout
from finetune_api.metrics import METRICS
from finetune_api.objective import DROPOUT_OBJECTIVES
from finetune_api.run_config import RunConfig

from finetune_trainer.sources import Address


def render_model_card(run: RunConfig) -> str:
    """YAML front matter, then Markdown: data, settings and evaluation."""
    spec = run.spec
    settings, plan = spec.training, run.plan
    base = Address("model", spec.model.uri).public_uri.removeprefix("hf://")
    dataset = Address("dataset", spec.dataset.train[0].uri).public_uri
    adapter = spec.model.adapter
    continued = f", continuing `{Address('model', adapter.uri).public_uri}`" if adapter else ""
    lines = [
        "---",
        *([f"base_model: {base}"] if spec.model.uri.startswith("hf://") else []),
        f"library_name: {'peft' if spec.method.type == 'Prefix' else 'transformers'}",
        f"pipeline_tag: text-{'classification' if spec.objective == 'Reward' else 'generation'}",
        "---",
        "",
        f"# {run.job.name}",
        "",
        f"`{base}` fine-tuned by the FineTuneJob `{run.job.namespace}/{run.job.name}`{continued}.",
        "",
        "## Data",
        "",
        f"Source: `{dataset}`",
    ]
    if run.data:
        lines += [
            f"({run.data.train_examples} training rows with {run.data.train_tokens} tokens, "
            f"{run.data.eval_examples} held out; `{run.data.digest}`).",
        ]
    lines += ["", "## Training", "", "| Setting | Value |", "| --- | --- |"]
    rows: dict[str, Any] = {"objective": spec.objective, "method": spec.method.type}
    has_dropout = spec.objective in DROPOUT_OBJECTIVES
    rows |= method_settings(spec.method if has_dropout else without_adapter_dropout(spec.method))
    if plan:
        rows |= {
            "optimizer steps": plan.total_steps,
            "sequences per step": plan.batch_size,
            "learning rate": plan.learning_rate,
            "strategy": f"{plan.strategy}, {plan.world_size} processes",
        }
    rows |= {
        "schedule": settings.schedule,
        "warm-up ratio": settings.warmup_ratio,
        "sequence length": settings.max_sequence_length,
        "precision": settings.precision,
        "seed": settings.seed,
    }
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([*lines, *evaluation_table(run), ""])


def method_settings(method: Method) -> dict[str, Any]:
    """The settings of the method that was used, by their names in the job."""
    used: dict[str, tuple[SpecModel | None, ...]] = {
        "LoRA": (method.lora or LoRA(), method.moe),
        "DoRA": (method.lora or LoRA(), method.moe),
        "QLoRA": (method.lora or LoRA(), method.quantization or Quantization(), method.moe),
        "AdaLoRA": (method.adalora or AdaLoRA(), method.moe),
        "IA3": (method.ia3, method.moe),
        "Prefix": (method.prefix or Prefix(), method.moe),
    }
    sections = [each for each in used.get(method.type, (method.moe,)) if each is not None]
    settings = {name: value for each in sections for name, value in each.to_wire().items()}
    return {
        name: ", ".join(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if value != []
    }


def evaluation_table(run: RunConfig) -> list[str]:
    """Lines of the evaluation in Markdown; none without an evaluation."""
    summary, objective = run.evaluation, run.spec.objective
    if summary is None:
        return []
    lines = ["", "## Evaluation on held-out rows", ""]
    lines.append("| Metric | Base | Tuned | Improvement | 95 % interval |")
    lines.append("| --- | --- | --- | --- | --- |")
    is_per_token = objective in ("SFT", "Completion")
    for found in summary.comparisons:
        label = METRICS[found.metric].label
        if found.metric == "loss":
            label = "loss (nats per token)" if is_per_token else f"{objective} loss"
        if found.baseline != BASE:
            label += f", against the base with the prompt {found.baseline}"
        lines.append(
            f"| {label} | {found.value:.4f} | {found.tuned:.4f} | {found.improvement:.4f} | "
            f"{found.low:.4f} to {found.high:.4f} |"
        )
        if found.relative_percent is not None:
            low, high = found.relative_low_percent or 0.0, found.relative_high_percent or 0.0
            lines.append(
                f"| {label}, relative | | | {format_value(found.relative_percent, 'Percent')} | "
                f"{format_interval(low, high, 'Percent')} |"
            )
    return lines

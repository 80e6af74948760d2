"""The export stage: the tuned model as one folder that any server can load.

The folder is complete once manifest.json is in it; the manifest holds the SHA-256 of every
other file, and its own digest is what the rest of the system knows the model by. A retry that
finds a complete folder keeps it, because it may be served; where it finds half a one it starts
over. Everything is readable by other users, because whoever serves the model runs under another
one.
"""

from finetune_trainer.runtime.sigterm import block_sigterm

if __name__ == "__main__":
    block_sigterm()

import hashlib
import json
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune_api.base import SpecModel
from finetune_api.finetunejob import AdaLoRA, LoRA, Method, Prefix, Quantization
from finetune_api.run import ArtifactRef, RunConfig, StageResult

from finetune_trainer import __version__
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.runtime.fsync import fsync_tree
from finetune_trainer.runtime.stage import Report, run_stage
from finetune_trainer.sources import Address

MANIFEST = "manifest.json"
EVALUATION_REPORT = "report/evaluation.json"
"""Below the job's folder; it goes with the model, because the job's folder goes with the job."""
LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "safetensors", "tokenizers")


def export(run: RunConfig, report: Report) -> StageResult:
    """Merge, write, check and publish; an artifact that is whole already stays as it is."""
    report.update("merging", step=0, total_steps=3)
    target = Path(run.paths.artifact)
    with Attempt(Path(run.paths.job), run.attempt, "export", home=target) as attempt:
        found = find_published(run, target)
        if found is None:
            manifest = write(run, report, attempt.scratch / "artifact")
            report.update("publishing", step=2)
            publish(attempt, attempt.scratch / "artifact", target, manifest)
            found = find_published(run, target)
    if found is None:
        raise RetryableError(
            "ArtifactChanged",
            "The files of the artifact are not those that were written.",
            "Check the workspace's storage.",
            file=str(target),
        )
    report.update("done", step=3)
    return StageResult(stage="export", attempt=run.attempt, outcome="Succeeded", artifact=found)


def find_published(run: RunConfig, target: Path) -> ArtifactRef | None:
    """The artifact of this job, if it is there and every file is as its manifest says.

    An earlier attempt may have got so far before it was replaced, and a server may read it.
    """
    from finetune_trainer.checkpointing.restore import hash_files

    assert run.artifact_uri is not None
    try:
        content = (target / MANIFEST).read_bytes()
        told = json.loads(content)
    except (FileNotFoundError, ValueError):
        return None
    shown = {path.name for path in target.iterdir() if not path.name.startswith(".")}
    files = {k: v for k, v in hash_files(target).items() if k.split("/")[0] in shown - {MANIFEST}}
    if told.get("files") != files or told.get("job") != run.job.to_wire():
        return None
    return ArtifactRef(
        uri=run.artifact_uri,
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
        bytes=sum(int(facts["size"]) for facts in files.values()) + len(content),
    )


def write(run: RunConfig, report: Report, folder: Path) -> bytes:
    """Write the artifact's files into `folder`; returns its manifest."""
    from finetune_trainer.checkpointing.restore import hash_files
    from finetune_trainer.data.tokenizer import load_job_tokenizer
    from finetune_trainer.evaluation.merge import base_folder, load_tuned_model
    from finetune_trainer.generation.greedy import find_end_tokens
    from finetune_trainer.methods import saved_dtype

    folder.mkdir()
    model = load_tuned_model(run, saved_dtype(base_folder(run)))
    report.update("writing", step=1)
    tokenizer = load_job_tokenizer(run)
    model.config.use_cache = True
    if model.can_generate():
        # Servers stop where this says; a base model's own list lacks what ends a turn.
        model.generation_config.eos_token_id = find_end_tokens(model, tokenizer)
    model.save_pretrained(folder, max_shard_size="5GB")
    name_base(folder / "adapter_config.json", run)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(run))
    evaluated = Path(run.paths.job) / EVALUATION_REPORT
    if evaluated.exists():
        shutil.copyfile(evaluated, folder / evaluated.name)
    verify_weights(folder, model)
    fsync_tree(folder)
    return json.dumps(manifest_of(run, hash_files(folder)), indent=1, sort_keys=True).encode()


def name_base(adapter_config: Path, run: RunConfig) -> None:
    """Let an exported prefix name its base as the user does, and not by a folder of this pod."""
    if adapter_config.is_file():
        address = run.spec.model
        config = json.loads(adapter_config.read_text())
        config["base_model_name_or_path"] = _shown(address.uri).removeprefix("hf://")
        config["revision"] = address.revision
        adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True))


def publish(attempt: Attempt, folder: Path, target: Path, manifest: bytes) -> None:
    """Move the files to their place, the manifest last.

    What an earlier attempt left goes first, its manifest before all, so that it never looks whole.
    `target` itself is a mount point that somebody else may own, so its mode is left alone.
    """
    old = [path for path in target.iterdir() if path != attempt.scratch]
    for path in sorted(old, key=lambda path: path.name != MANIFEST):
        attempt.remove(path)
    with attempt.guarded():
        new = sorted(folder.iterdir())
    for path in new:
        attempt.publish(path, target / path.name)
    attempt.publish_file(target / MANIFEST, manifest)


def verify_weights(folder: Path, model: Any) -> None:
    """Read the headers back: the files must hold as many numbers as the model.

    Numbers and not names, because some architectures are saved under other names than they run.
    """
    from math import prod

    from safetensors import safe_open

    written = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                written += prod(tensors.get_slice(name).get_shape())
    wanted = sum(weight.numel() for weight in saved_weights(model))
    if written < wanted:
        raise RetryableError(
            "ArtifactIncomplete",
            f"The export holds {written} of {wanted} weights.",
            "Check the workspace's storage.",
            file=str(folder),
        )


def saved_weights(model: Any) -> Iterator[Any]:
    """What is saved of a model: all of it, or only the prefix where it has one."""
    if not hasattr(model, "peft_config"):
        return iter(model.parameters())
    from peft import get_peft_model_state_dict

    return iter(get_peft_model_state_dict(model).values())


def manifest_of(run: RunConfig, files: dict[str, Any]) -> dict[str, Any]:
    """What the folder holds and where it came from."""
    spec = run.spec
    return {
        "version": 1,
        "job": run.job.to_wire(),
        "base": {
            "uri": _shown(spec.model.uri),
            "revision": run.model.revision if run.model else None,
        },
        "method": spec.method.to_wire(),
        "data": run.data.to_wire() if run.data else None,
        "evaluation": run.evaluation.to_wire() if run.evaluation else None,
        "versions": {"finetune-trainer": __version__} | library_versions(),
        "files": files,
    }


def _shown(uri: str) -> str:
    # A presigned address carries a secret, and the artifact goes further than the job.
    return Address("model", uri).shown


def library_versions() -> dict[str, str]:
    """Versions of what made the weights."""
    return {name: metadata.version(name) for name in LIBRARIES}


def model_card(run: RunConfig) -> str:
    """README.md in the form that model hubs read: YAML head, then Markdown."""
    spec = run.spec
    settings, plan = spec.training, run.plan
    base = _shown(spec.model.uri).removeprefix("hf://")
    lines = [
        "---",
        *([f"base_model: {base}"] if spec.model.uri.startswith("hf://") else []),
        f"library_name: {'peft' if spec.method.type == 'Prefix' else 'transformers'}",
        f"pipeline_tag: text-{'classification' if spec.objective == 'Reward' else 'generation'}",
        "---",
        "",
        f"# {run.job.name}",
        "",
        f"`{base}` fine-tuned by the FineTuneJob `{run.job.namespace}/{run.job.name}`.",
        "",
        "## Data",
        "",
        f"Source: `{_shown(spec.dataset.train[0].uri)}`",
    ]
    if run.data:
        lines += [
            f"({run.data.train_examples} rows to learn from with {run.data.train_tokens} tokens, "
            f"{run.data.eval_examples} held out; `{run.data.digest}`).",
        ]
    lines += ["", "## Training", "", "| Setting | Value |", "| --- | --- |"]
    rows: dict[str, Any] = {"objective": spec.objective, "method": spec.method.type}
    rows |= method_settings(spec.method)
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
    """The evaluation in Markdown, or nothing."""
    summary = run.evaluation
    if summary is None:
        return []
    lines = ["", "## Evaluation on held-out rows", "", "| Measure | Base | Tuned |"]
    lines.append("| --- | --- | --- |")
    objective = run.spec.objective
    by_token = objective in ("SFT", "Completion")
    measures: dict[str, Any] = {
        "loss (nats per token)" if by_token else f"{objective} loss": summary.loss,
        "better answer preferred": summary.preference_accuracy,
        "mean reward": summary.reward,
        "exact match": summary.exact_match,
        "ROUGE-L": summary.rouge_l,
    }
    lines += [
        f"| {name} | {pair.base:.4f} | {pair.tuned:.4f} |"
        for name, pair in measures.items()
        if pair
    ]
    if loss := summary.loss:
        lines += [
            "",
            f"The loss improved by {loss.improvement_percent:.2f} % "
            f"(95 % interval {loss.low_percent:.2f} to {loss.high_percent:.2f} %).",
        ]
    return lines


if __name__ == "__main__":
    raise SystemExit(run_stage("export", export))

"""The prepared dataset: the folder `data/` of the job, all that training sees of the data.

`data/` is written under another name and renamed, so it is complete or missing; the manifest
records what it was made from, and a later attempt that would make the same keeps it. It holds

- train/ and eval/: token stores (see token_store). Sequences of SFT and Completion may be packed;
  otherwise a sequence is one tokenized sample. Sequences 2i and 2i + 1 are the chosen and the
  rejected answer of pair i (DPO, ORPO, SimPO, Reward); KTO has `desirable.npy`, bool [sequences],
  in both; GRPO has only prompts, in which nothing is learnt. A sample that the mixture repeats is
  in several sequences.
- eval.jsonl: a line for each held-out sample, in the order of the eval store, with tools and
  documents where the row has them. SFT and GRPO: messages and reference (null where GRPO has
  none); DPO, ORPO, SimPO and Reward: messages, chosen and rejected; KTO: messages, completion and
  label; Completion: file and line of each sequence.
- examples.jsonl: only where a baseline of the evaluation has examples, messages and reference of
  training samples.
- train.jsonl: only for GRPO, messages and reference of each sequence of the training store.
- manifest.json: settings, facts, counts of every source, and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.dataset import Format
from finetune_api.facts import DataFacts, SkippedRows, SourceFacts
from finetune_api.finetunejob import FineTuneJobSpec

from finetune_trainer.data.examples import count_examples
from finetune_trainer.data.json_lines import write_json_lines
from finetune_trainer.data.mixture import MixtureSource
from finetune_trainer.data.packing import one_per_sequence, pack_samples
from finetune_trainer.data.row_errors import SkippedRow
from finetune_trainer.data.samples import Sample, UnpairedPreferenceSample
from finetune_trainer.data.split import Split
from finetune_trainer.data.token_store import DESIRABLE, TokenizedSample, TokenStore
from finetune_trainer.data.tokenize import SampleTokens
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.runtime.fsync import fsync_tree, sha256_file
from finetune_trainer.sources.dataset_files import DataFile, data_digest

VERSION = 3
MANIFEST = "manifest.json"
EXAMPLES = "examples.jsonl"
MAX_COLUMNS, MAX_NAME, MAX_REASONS, MAX_SKIPPED = 32, 128, 16, 100
"""Ignored columns, characters of each, and reasons of skipped rows in the status; rows of each
reason in the manifest."""


@dataclass(frozen=True)
class DatasetInputs:
    """What `data/` is made from; equal digests mean an equal folder."""

    spec: FineTuneJobSpec
    revisions: tuple[str, ...]
    """Of the model, each source of training data and the validation data."""
    is_packed: bool

    @property
    def digest(self) -> str:
        """`sha256:` and a digest over everything that decides the result."""
        spec = self.spec
        changes, sft, grpo = spec.model.tokenizer, spec.sft, spec.grpo
        parts = {
            "version": VERSION,
            "objective": spec.objective,
            "dataset": spec.dataset.to_wire(),
            "revisions": self.revisions,
            "training": [spec.training.seed, spec.training.max_sequence_length, self.is_packed],
            "tokenizer": changes.to_wire() if changes else None,
            "lossOn": sft.loss_on if sft else None,
            "examples": count_examples(spec),
            "answers": [grpo.max_new_tokens, [r.type for r in grpo.rewards]] if grpo else None,
        }
        text = json.dumps(parts, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass(frozen=True)
class PreparedDataset:
    """Everything that goes into `data/`."""

    inputs: DatasetInputs
    format: Format
    split: Split
    files: list[DataFile]
    sources: list[SourceFacts]
    train: list[SampleTokens]
    """Every sample of the training side once."""
    epoch: list[int]
    """Which of them an epoch takes, as indices."""
    mixture: list[MixtureSource]
    held_out: list[SampleTokens]
    examples: Sequence[Sample]
    """Training samples for the prompts of baselines."""
    template_sha256: str
    """Of the chat template, in hex."""
    date: str | None
    """The date that the chat template printed."""
    tokenizer_digest: str
    skipped: Sequence[SkippedRow] = ()
    ignored_columns: Sequence[str] = ()


def find_prepared_dataset(folder: Path, inputs: DatasetInputs) -> DataFacts | None:
    """The facts of `folder` if it was made from the same inputs and is complete."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = json.loads((folder / MANIFEST).read_bytes())
    sizes = {path: entry["bytes"] for path, entry in manifest["files"].items()}
    is_complete = all(
        (folder / path).is_file() and (folder / path).stat().st_size == size
        for path, size in sizes.items()
    )
    if manifest["inputs"] != inputs.digest or not is_complete:
        return None
    return DataFacts.model_validate(manifest["facts"])


def write_dataset(attempt: Attempt, folder: Path, prepared: PreparedDataset) -> DataFacts:
    """Write `folder` atomically, replacing one made from other inputs; returns its facts."""
    scratch = attempt.scratch / "data"
    scratch.mkdir()
    epoch = [prepared.train[index] for index in prepared.epoch]
    train = _write_train(scratch, prepared, epoch)
    tokenized = [each for tokens in prepared.held_out for each in tokens.tokenized]
    held_out = TokenStore.write(scratch / "eval", tokenized, one_per_sequence(len(tokenized)))
    _write_desirable(scratch / "eval", prepared.held_out)
    lines = [
        to_line(tokens)
        for tokens in prepared.held_out
        for _ in (tokens.tokenized if prepared.format == "completion" else (None,))
    ]
    write_json_lines(scratch / "eval.jsonl", lines)
    if prepared.examples:
        write_json_lines(scratch / EXAMPLES, (example.to_json() for example in prepared.examples))
    facts = _facts(prepared, epoch, train, held_out)
    _write_manifest(scratch, prepared, facts)
    fsync_tree(scratch)
    attempt.publish(scratch, folder)
    return facts


def to_line(tokens: SampleTokens) -> dict[str, Any]:
    """The line of eval.jsonl."""
    line = tokens.sample.to_json()
    return line if tokens.answer is None else {**line, "reference": tokens.answer}


def _write_train(
    scratch: Path, prepared: PreparedDataset, epoch: Sequence[SampleTokens]
) -> TokenStore:
    """The store: every sample of the epoch once, in as many sequences as the epoch takes it."""
    numbers: dict[int, list[int]] = {}
    tokenized: list[TokenizedSample] = []
    for index in dict.fromkeys(prepared.epoch):
        added = prepared.train[index].tokenized
        numbers[index] = list(range(len(tokenized), len(tokenized) + len(added)))
        tokenized += added
    members = [number for index in prepared.epoch for number in numbers[index]]
    training = prepared.inputs.spec.training
    sequences = [[number] for number in members]
    if prepared.inputs.is_packed:
        lengths = [len(tokenized[number].tokens) for number in members]
        packed = pack_samples(lengths, training.max_sequence_length, training.seed)
        sequences = [[members[place] for place in sequence] for sequence in packed]
    store = TokenStore.write(scratch / "train", tokenized, sequences)
    _write_desirable(scratch / "train", epoch)
    if prepared.format == "prompt":
        write_json_lines(scratch / "train.jsonl", (tokens.sample.to_json() for tokens in epoch))
    return store


def _write_desirable(folder: Path, samples: Sequence[SampleTokens]) -> None:
    desirable = [
        tokens.sample.is_desirable
        for tokens in samples
        if isinstance(tokens.sample, UnpairedPreferenceSample)
    ]
    if desirable:
        np.save(folder / DESIRABLE, np.asarray(desirable, dtype=np.bool_))


def _facts(
    prepared: PreparedDataset,
    epoch: Sequence[SampleTokens],
    train: TokenStore,
    held_out: TokenStore,
) -> DataFacts:
    both = [*epoch, *prepared.held_out]
    has_pairs = prepared.format == "preference" and prepared.inputs.spec.objective != "KTO"
    return DataFacts(
        format=prepared.format,
        packed=prepared.inputs.is_packed,
        train_examples=len(epoch),
        eval_examples=len(prepared.held_out),
        train_tokens=int(train.sequence_lengths.sum()),
        eval_tokens=held_out.token_count,
        train_sequences=train.sequence_count // 2 if has_pairs else train.sequence_count,
        longest_example=max(each.full_length for each in both),
        truncated_examples=sum(each.is_truncated for each in both),
        partly_learnt_examples=sum(each.is_partly_learnt for each in both) or None,
        duplicate_examples=prepared.split.duplicate_count,
        skipped=summarize_skipped(prepared.skipped) or None,
        ignored_columns=_list_columns(prepared.ignored_columns) or None,
        date=prepared.date,
        digest=data_digest(prepared.files),
        sources=prepared.sources,
    )


def summarize_skipped(rows: Sequence[SkippedRow]) -> list[SkippedRows]:
    """The rows that were left out, by reason, the most frequent first."""
    found = [
        SkippedRows(
            reason=reason,
            rows=len(group),
            first=_to_utf8(f"Line {group[0].line} of {group[0].file}: {group[0].message}.")[:1000],
        )
        for reason, group in _group_by_reason(rows).items()
    ]
    return sorted(found, key=lambda each: -each.rows)[:MAX_REASONS]


def _group_by_reason(rows: Sequence[SkippedRow]) -> dict[str, list[SkippedRow]]:
    groups: dict[str, list[SkippedRow]] = {}
    for row in rows:
        groups.setdefault(row.reason, []).append(row)
    return groups


def _to_utf8(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can hold and a status cannot."""
    return text.encode("utf-8", "replace").decode()


def _list_columns(names: Sequence[str]) -> list[str]:
    """As many of the names as the status takes, and how many more there are."""
    listed = [
        name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…" for name in map(_to_utf8, names)
    ]
    rest = len(listed) - MAX_COLUMNS
    return listed if rest <= 0 else [*listed[: MAX_COLUMNS - 1], f"and {rest + 1} more"]


def _write_manifest(folder: Path, prepared: PreparedDataset, facts: DataFacts) -> None:
    files = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        entry = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        files[path.relative_to(folder).as_posix()] = entry
    training = prepared.inputs.spec.training
    manifest = {
        "version": VERSION,
        "inputs": prepared.inputs.digest,
        "revisions": prepared.inputs.revisions,
        "facts": facts.to_wire(),
        "seed": training.seed,
        "maxSequenceLength": training.max_sequence_length,
        "packing": prepared.inputs.is_packed,
        "mixture": [
            {"examples": source.samples, "drawn": source.samples_per_epoch}
            for source in prepared.mixture
        ],
        "skipped": {
            reason: {
                "rows": len(group),
                "examples": [
                    {"file": row.file, "line": row.line, "message": row.message}
                    for row in group[:MAX_SKIPPED]
                ],
            }
            for reason, group in _group_by_reason(prepared.skipped).items()
        },
        "ignoredColumns": list(prepared.ignored_columns),
        "removedFromTraining": prepared.split.overlap_count,
        "chatTemplate": f"sha256:{prepared.template_sha256}",
        "tokenizer": prepared.tokenizer_digest,
        "sources": [{"name": file.name, "sha256": file.sha256} for file in prepared.files],
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")

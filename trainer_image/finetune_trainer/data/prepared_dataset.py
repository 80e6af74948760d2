"""The data half of prepare: units in, the folder `data/` of the job out.

`data/` is written beside its place and renamed, so it is whole or not there; the manifest says
what it was made from, and a later attempt that would make the same keeps it. It holds

- train/ and eval/: token stores (see store.py). Rows of SFT and Completion may be packed. Else a
  row is one example; rows 2i and 2i + 1 are the chosen and the rejected answer of pair i (DPO,
  ORPO, Reward); KTO has `desirable.npy`, bool [rows], in both; of GRPO only prompts are there,
  with nothing to learn. An example that the mixture repeats stands in several rows.
- eval.jsonl: a line for each held-out unit, in the order of the eval store. SFT and GRPO: messages
  and reference (null where GRPO has none); DPO, ORPO and Reward: messages, chosen and rejected;
  KTO: messages, completion and label; Completion: file and line of each sequence.
- train.jsonl: only for GRPO, messages and reference of each row of the training store.
- manifest.json: settings, facts, counts of every source, and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.dataset import Format
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import DataFacts

from finetune_trainer.data.mixture import Task
from finetune_trainer.data.packing import pack, unpacked
from finetune_trainer.data.samples import UnpairedPreferenceSample
from finetune_trainer.data.split import Split
from finetune_trainer.data.token_store import DESIRABLE, TokenizedSample, TokenStore
from finetune_trainer.data.tokenize import Coded
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.runtime.fsync import seal, sha256_of
from finetune_trainer.sources.dataset_files import DataFile, data_digest

VERSION = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Inputs:
    """What `data/` is made from; equal digests, equal folder."""

    spec: FineTuneJobSpec
    revisions: tuple[str, ...]
    """Of the model, each source of training data and the validation data."""
    packed: bool

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
            "training": [spec.training.seed, spec.training.max_sequence_length, self.packed],
            "tokenizer": changes.to_wire() if changes else None,
            "lossOn": sft.loss_on if sft else None,
            "answers": [grpo.max_new_tokens, [r.type for r in grpo.rewards]] if grpo else None,
        }
        text = json.dumps(parts, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass(frozen=True)
class Prepared:
    """Everything that goes into `data/`."""

    inputs: Inputs
    format: Format
    split: Split
    files: list[DataFile]
    train: list[Coded]
    """Every unit of the training side once."""
    drawn: list[int]
    """Which of them an epoch takes, by their index."""
    tasks: list[Task]
    held_out: list[Coded]
    template: str
    """SHA-256 of the chat template, in hex."""
    date: str | None
    """Day that the template was given."""
    tokenizer_digest: str


def find_prepared(folder: Path, inputs: Inputs) -> DataFacts | None:
    """The facts of `folder` if it was made from the same inputs and is whole."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = json.loads((folder / MANIFEST).read_bytes())
    sizes = {path: entry["bytes"] for path, entry in manifest["files"].items()}
    whole = all(
        (folder / path).is_file() and (folder / path).stat().st_size == size
        for path, size in sizes.items()
    )
    same = manifest["inputs"] == inputs.digest
    return DataFacts.model_validate(manifest["facts"]) if same and whole else None


def write_data(attempt: Attempt, folder: Path, prepared: Prepared) -> DataFacts:
    """Write `folder` whole, replacing one made from other inputs; returns its facts."""
    scratch = attempt.scratch / "data"
    scratch.mkdir()
    drawn = [prepared.train[index] for index in prepared.drawn]
    train = _write_train(scratch, prepared, drawn)
    examples = [example for coded in prepared.held_out for example in coded.examples]
    held_out = TokenStore.write(scratch / "eval", examples, unpacked(len(examples)))
    _write_labels(scratch / "eval", prepared.held_out)
    shown = [
        coded.unit.shown()
        for coded in prepared.held_out
        for _ in (coded.examples if prepared.format == "completion" else (None,))
    ]
    _write_lines(scratch / "eval.jsonl", shown)
    facts = _facts(prepared, drawn, train, held_out)
    _write_manifest(scratch, prepared, facts)
    seal(scratch)
    attempt.publish(scratch, folder)
    return facts


def _write_train(scratch: Path, prepared: Prepared, drawn: list[Coded]) -> TokenStore:
    """The store with every example that is drawn once, and rows that name it as often as it is."""
    numbers: dict[int, list[int]] = {}
    examples: list[TokenizedSample] = []
    for index in dict.fromkeys(prepared.drawn):
        new = prepared.train[index].examples
        numbers[index] = list(range(len(examples), len(examples) + len(new)))
        examples += new
    members = [number for index in prepared.drawn for number in numbers[index]]
    training = prepared.inputs.spec.training
    rows = [[number] for number in members]
    if prepared.inputs.packed:
        lengths = [len(examples[number].tokens) for number in members]
        packed = pack(lengths, training.max_sequence_length, training.seed)
        rows = [[members[place] for place in row] for row in packed]
    store = TokenStore.write(scratch / "train", examples, rows)
    _write_labels(scratch / "train", drawn)
    if prepared.format == "prompt":
        _write_lines(scratch / "train.jsonl", (coded.unit.shown() for coded in drawn))
    return store


def _write_labels(folder: Path, units: Sequence[Coded]) -> None:
    rated = [
        coded.unit.desirable for coded in units if isinstance(coded.unit, UnpairedPreferenceSample)
    ]
    if rated:
        np.save(folder / DESIRABLE, np.asarray(rated, dtype=np.bool_))


def _facts(
    prepared: Prepared, drawn: Sequence[Coded], train: TokenStore, held_out: TokenStore
) -> DataFacts:
    both = [*drawn, *prepared.held_out]
    pairs = prepared.format == "preference" and prepared.inputs.spec.objective != "KTO"
    return DataFacts(
        format=prepared.format,
        packed=prepared.inputs.packed,
        train_examples=len(drawn),
        eval_examples=len(prepared.held_out),
        train_tokens=int(train.row_lengths.sum()),
        eval_tokens=held_out.tokens,
        train_sequences=train.rows // 2 if pairs else train.rows,
        longest_example=max(each.full_length for each in both),
        truncated_examples=sum(each.truncated for each in both),
        duplicate_examples=prepared.split.duplicates,
        date=prepared.date,
        digest=data_digest(prepared.files),
    )


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with path.open("w") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_manifest(folder: Path, prepared: Prepared, facts: DataFacts) -> None:
    files = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        entry = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        files[path.relative_to(folder).as_posix()] = entry
    training = prepared.inputs.spec.training
    manifest = {
        "version": VERSION,
        "inputs": prepared.inputs.digest,
        "revisions": prepared.inputs.revisions,
        "facts": facts.to_wire(),
        "seed": training.seed,
        "maxSequenceLength": training.max_sequence_length,
        "packing": prepared.inputs.packed,
        "mixture": [{"examples": task.examples, "drawn": task.drawn} for task in prepared.tasks],
        "removedFromTraining": prepared.split.removed,
        "chatTemplate": f"sha256:{prepared.template}",
        "tokenizer": prepared.tokenizer_digest,
        "sources": [{"name": file.name, "sha256": file.sha256} for file in prepared.files],
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")

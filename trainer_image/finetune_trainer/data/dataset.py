"""The data half of prepare: files of rows in, the folder `data/` of the job out.

`data/` holds train/ and eval/ (token stores), eval.jsonl (the held-out rows as text, in the order
of the eval store's examples) and manifest.json. It is written beside its place and renamed, so it
is whole or not there; the manifest says what it was made from, and a later attempt that would
make the same keeps it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.finetunejob import Dataset, FineTuneJobSpec
from finetune_api.run import DataFacts

from finetune_trainer.data.bad_rows import BadRow, BadRows
from finetune_trainer.data.chat import ChatEncoder, Encoded, is_plain
from finetune_trainer.data.conversation import (
    Conversation,
    Format,
    Layout,
    find_layout,
    to_conversation,
)
from finetune_trainer.data.packing import pack, unpacked
from finetune_trainer.data.rows import read_rows
from finetune_trainer.data.split import Split, holdout, with_validation
from finetune_trainer.data.store import TokenStore
from finetune_trainer.sources.dataset_files import DataFile, data_digest
from finetune_trainer.sources.meter import Tell
from finetune_trainer.sources.snapshot import sha256_of
from finetune_trainer.stage import UserError

VERSION = 1
MANIFEST = "manifest.json"
_BATCH = 256


@dataclass(frozen=True)
class ModelLimits:
    """What the data must keep to."""

    context: int
    """Longest sequence of the model in tokens."""
    vocabulary: int
    """Rows of the embedding."""


@dataclass(frozen=True)
class Inputs:
    """What `data/` is made from; equal digests, equal folder."""

    spec: FineTuneJobSpec
    revisions: tuple[str, ...]
    """Of the model, the training data and the validation data."""

    @property
    def digest(self) -> str:
        """`sha256:` and a digest over everything that decides the result."""
        training = self.spec.training
        parts = {
            "version": VERSION,
            "dataset": self.spec.dataset.to_wire(),
            "revisions": self.revisions,
            "training": [training.seed, training.max_sequence_length, training.packing],
        }
        text = json.dumps(parts, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


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


def read_conversations(
    files: list[DataFile], dataset: Dataset
) -> tuple[Format, list[Conversation]]:
    """All rows of a source; UserError with file and line where one cannot be used."""
    bad = BadRows()
    layout: Layout | None = None
    found: list[Conversation] = []
    for row in read_rows(files, bad):
        try:
            if layout is None:
                layout = find_layout(dataset.format, dataset.columns, list(row.values))
            turns = to_conversation(row.values, layout)
        except BadRow as error:
            bad.add(error, row.file, row.line)
            if layout is None:
                break
        else:
            found.append(Conversation(turns, row.file, row.line))
    bad.check()
    if layout is None:
        names = ", ".join(file.name for file in files)
        raise UserError(
            "EmptyDataset",
            f"There is no row in {names}.",
            "Check that the upload is whole and dataset.train names the right file.",
            file=files[0].name,
        )
    return layout.format, found


def split_rows(
    train: list[Conversation], validation: list[Conversation] | None, spec: FineTuneJobSpec
) -> Split:
    """Hold out a share of the rows, or take the validation data for it."""
    seed = spec.training.seed
    if validation is None:
        return holdout(train, spec.dataset.holdout, seed)
    return with_validation(train, validation, seed)


def make_encoder(tokenizer: Any, limits: ModelLimits, form: Format, longest: int) -> ChatEncoder:
    """Check job against model; UserError where a sequence or a chat cannot be had."""
    if longest > limits.context:
        raise UserError(
            "ContextTooLong",
            f"training.maxSequenceLength is {longest} and the model's context {limits.context}.",
            f"Set training.maxSequenceLength to {limits.context} or less.",
        )
    if form == "chat" and is_plain(tokenizer):
        raise UserError(
            "NoChatTemplate",
            "The data are conversations, but the model has no chat template.",
            "Use the instruct release of the model, add chat_template.jinja to it, or give "
            "prompt and completion columns.",
        )
    return ChatEncoder(tokenizer, longest, limits.context)


def encode_all(
    rows: Sequence[Conversation], encoder: ChatEncoder, tell: Callable[[int], None]
) -> list[Encoded]:
    """Tokens of every row; UserError where one cannot be used. `tell` is given the rows done."""
    bad = BadRows()
    found: list[Encoded] = []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        for row, encoded in zip(batch, encoder.encode(batch), strict=True):
            if isinstance(encoded, BadRow):
                bad.add(encoded, row.file, row.line)
            else:
                found.append(encoded)
        tell(start + len(batch))
    bad.check()
    return found


@dataclass(frozen=True)
class Prepared:
    """Everything that goes into `data/`."""

    inputs: Inputs
    format: Format
    split: Split
    files: list[DataFile]
    train: list[Encoded]
    held_out: list[Encoded]
    template: str
    tokenizer_digest: str


def encode_split(
    split: Split, encoder: ChatEncoder, tell: Tell
) -> tuple[list[Encoded], list[Encoded]]:
    """Both sides as tokens, the shorter first because a fault may be in it too."""
    total = len(split.train) + len(split.held_out)

    def from_row(offset: int) -> Callable[[int], None]:
        return lambda done: tell(f"tokenising {offset + done}/{total}", offset + done, total)

    held_out = encode_all(split.held_out, encoder, from_row(0))
    return encode_all(split.train, encoder, from_row(len(held_out))), held_out


def check_vocabulary(rows: Sequence[Encoded], limits: ModelLimits) -> None:
    """UserError where a token has no row in the embedding: training would crash on it."""
    highest = max(int(np.max(row.example.tokens)) for row in rows)
    if highest >= limits.vocabulary:
        raise UserError(
            "UnsupportedModel",
            f"The tokenizer gives token {highest}, but the model's embedding has only "
            f"{limits.vocabulary} rows.",
            "Use the tokenizer that belongs to the model.",
        )


def write_data(folder: Path, prepared: Prepared) -> DataFacts:
    """Write `folder` whole, replacing one made from other inputs; returns its facts."""
    scratch = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    training = prepared.inputs.spec.training
    lengths = [len(each.example.tokens) for each in prepared.train]
    rows = (
        pack(lengths, training.max_sequence_length, training.seed)
        if training.packing
        else unpacked(len(lengths))
    )
    train = TokenStore.write(scratch / "train", [e.example for e in prepared.train], rows)
    held_out = TokenStore.write(
        scratch / "eval",
        [each.example for each in prepared.held_out],
        unpacked(len(prepared.held_out)),
    )
    _write_references(scratch / "eval.jsonl", prepared.split.held_out)
    facts = _facts(prepared, train, held_out)
    _write_manifest(scratch, prepared, facts)
    if folder.exists():
        shutil.rmtree(folder)
    scratch.rename(folder)
    return facts


def _facts(prepared: Prepared, train: TokenStore, held_out: TokenStore) -> DataFacts:
    both = [*prepared.train, *prepared.held_out]
    return DataFacts(
        format=prepared.format,
        train_examples=train.examples,
        eval_examples=held_out.examples,
        train_tokens=train.tokens,
        eval_tokens=held_out.tokens,
        train_sequences=train.rows,
        longest_example=max(each.full_length for each in both),
        truncated_examples=sum(each.truncated for each in both),
        duplicate_examples=prepared.split.duplicates,
        digest=data_digest(prepared.files),
    )


def _write_references(path: Path, rows: Sequence[Conversation]) -> None:
    with path.open("w") as file:
        for row in rows:
            prompt = [turn.to_dict() for turn in row.turns[:-1]]
            line = {"messages": prompt, "reference": row.turns[-1].content}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_manifest(folder: Path, prepared: Prepared, facts: DataFacts) -> None:
    files = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        path.chmod(0o644)
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
        "packing": training.packing,
        "removedFromTraining": prepared.split.removed,
        "chatTemplate": f"sha256:{hashlib.sha256(prepared.template.encode()).hexdigest()}",
        "tokenizer": prepared.tokenizer_digest,
        "sources": {file.name: file.sha256 for file in prepared.files},
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")

"""Damaged files of every format give samples or a UserError with the file, and nothing else.

`make fuzz` reads thousands of them; the trainer's tests a few hundred, the same ones in every run.
A failure prints the number of its case and the seed, which repeat it.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from finetune_trainer.data.read_records import read_dataset
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources import Address, open_source
from finetune_trainer.sources.dataset_files import fetch_data_files

from tests.trainer.rows import job
from tests.trainer.source_files import ignore_progress

CASES = int(os.environ.get("FINETUNE_FUZZ", "400"))
SEED = int(os.environ.get("FINETUNE_FUZZ_SEED", "0"))
TEXTS = ("a", "line\nfeed", 'quote "', "comma, tab\t", "\u2028é\U0001f600", "<html>", "x" * 300)
TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\r", b"\t", b"\0", b"\\", b"\\ud800",
    b"NaN", b"1e999", b"null", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"9" * 5000, b"[" * 2000,
    b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PAR1", b"ARROW1", b"<!doctype html>",
    b"version https://git-lfs.github.com/spec/v1\n",
)  # fmt: skip
Rows = list[dict[str, Any]]


def draw_rows(draw: random.Random) -> Rows:
    rows: Rows = [
        {"prompt": draw.choice(TEXTS), "completion": draw.choice(TEXTS)}
        for _ in range(draw.randint(1, 20))
    ]
    return rows


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def delimited(delimiter: str) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        cells = [("prompt", "completion"), *((r["prompt"], r["completion"]) for r in rows)]
        lines = (delimiter.join('"' + c.replace('"', '""') + '"' for c in line) for line in cells)
        return "\n".join(lines).encode()

    return write


def with_values(rows: Rows) -> Any:
    """A table with columns of many types in addition to those of text."""
    when = datetime(2026, 1, 2, tzinfo=UTC)
    more = {"when": when, "day": when.date(), "score": 1.5, "tags": ["a"], "of": {"k": b"v"}}
    table = pyarrow.Table.from_pylist([{**row, **more} for row in rows])
    return table.append_column("kind", table["prompt"].dictionary_encode())


def parquet(rows: Rows) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(with_values(rows), sink, compression="none")
    return bytes(sink.getvalue())


def arrow(open_writer: Callable[..., Any]) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        table, sink = with_values(rows), pyarrow.BufferOutputStream()
        with open_writer(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        return bytes(sink.getvalue())

    return write


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "jsonl": json_lines,
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "object.json": lambda rows: json.dumps({"version": 1, "data": rows}, indent=1).encode(),
    "csv": delimited(","),
    "tsv": delimited("\t"),
    "txt": lambda rows: "\n".join(row["prompt"] for row in rows).encode(),
    "parquet": parquet,
    "arrow": arrow(pyarrow.ipc.new_file),
    "stream.arrow": arrow(pyarrow.ipc.new_stream),
}


def change(content: bytes, draw: random.Random) -> bytes:
    """The content with one mistake."""
    at = draw.randint(0, len(content))
    match draw.choice(("cut", "flip", "insert", "remove", "repeat", "zero", "random", "tail")):
        case "cut":
            return content[:at]
        case "tail":
            return content[at:]
        case "flip":
            flipped = bytearray(content or b"\0")
            for _ in range(draw.randint(1, 8)):
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        case "insert":
            return content[:at] + draw.choice(TOKENS) + content[at:]
        case "remove":
            return content[:at] + content[at + draw.randint(1, 40) :]
        case "repeat":
            return content[:at] + content[max(0, at - draw.randint(1, 200)) :]
        case "zero":
            return content[:at] + bytes(draw.randint(1, 64)) + content[at:]
        case _:
            return draw.randbytes(draw.randint(0, 400))


def make_file(folder: Path, number: int) -> Path:
    """The damaged file of case `number`: like the seed, it decides everything."""
    draw = random.Random(f"{SEED}/{number}")
    format_ = draw.choice(list(WRITERS))
    content = WRITERS[format_](draw_rows(draw))
    is_text = not format_.endswith(("parquet", "arrow"))
    suffix = draw.choice(["", ".gz", ".zst"]) if is_text else ""
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[suffix]
    order = draw.choice(["intact", "before", "before", "after"])
    for _ in range(draw.randint(1, 3)):
        content = change(content, draw) if order == "before" else content
    content = compress(content)
    content = change(content, draw) if order == "after" else content
    path = folder / f"rows.{format_}{suffix}"
    path.write_bytes(content)
    return path


def read_as_prepare_does(volumes: Path, downloads: Path, objective: str) -> str:
    """`samples`, or the reason of the UserError, after a check that it names file and remedy."""
    try:
        source = open_source(Address("dataset", "pvc://data"), volumes)
        files = fetch_data_files(source, downloads, ignore_progress)
        samples = read_dataset([files], None, job(objective))
    except UserError as error:
        failure = error.failure
        assert failure.file
        assert failure.remedy
        assert failure.line is not None or failure.reason in (
            "BrokenFile", "EmptyDataset", "NotRows"
        ), failure  # fmt: skip
        return failure.reason
    assert samples.train, "no rows and no error"
    return "samples"


def test_damaged_files_are_the_users_error(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    claim = tmp_path / "pvc" / "data"
    claim.mkdir(parents=True)
    for number in range(CASES):
        path = make_file(claim, number)
        objective = "Completion" if path.name.startswith("rows.txt") else "SFT"
        try:
            seen[read_as_prepare_does(claim.parent, tmp_path / "downloads", objective)] += 1
        except Exception as error:
            case = f"case {number} of FINETUNE_FUZZ_SEED={SEED}, {path.name}"
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
        path.unlink()
    ends = ", ".join(f"{count} {end}" for end, count in seen.most_common())
    print(f"fuzz: {CASES} files: {ends}; FINETUNE_FUZZ_SEED={SEED}")
    assert min(seen["samples"], seen["BrokenRow"], seen["BrokenFile"]) >= CASES // 50

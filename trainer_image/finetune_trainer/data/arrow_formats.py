"""Parses Parquet and Arrow files through pyarrow; the "line" of a row is its number.

pyarrow raises whatever the Python type of a value raises (OverflowError for a date in the year
10000, ValueError for nanoseconds, UnicodeDecodeError), and for a damaged file one of its own
errors or an OSError without errno. All become the error of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.text_formats import NumberedRow, duplicate_column

_BATCH = 1024
_ARROW_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def parse_parquet(path: Path) -> Iterator[NumberedRow]:
    """The rows of a Parquet file."""

    def batches() -> Iterator[Any]:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            yield file.schema_arrow
            yield from file.iter_batches(batch_size=_BATCH)

    return _parse(batches(), "Parquet")


def parse_arrow(path: Path) -> Iterator[NumberedRow]:
    """The rows of an Arrow IPC file or stream; `save_to_disk` of datasets writes streams."""

    def batches() -> Iterator[Any]:
        import pyarrow
        import pyarrow.ipc

        with path.open("rb") as file:
            is_file = file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
        with pyarrow.OSFile(str(path)) as file:
            if is_file:
                with pyarrow.ipc.open_file(file) as reader:
                    yield reader.schema
                    for index in range(reader.num_record_batches):
                        yield from _slices(reader.get_batch(index))
                return
            with pyarrow.ipc.open_stream(file) as reader:
                yield reader.schema
                for batch in reader:
                    yield from _slices(batch)
                if file.tell() < file.size():
                    raise pyarrow.ArrowInvalid("the file goes on after the end of its stream")
            if not _has_end_mark(path):
                raise pyarrow.ArrowInvalid("the end of the stream is missing")

    return _parse(batches(), "Arrow")


def _has_end_mark(path: Path) -> bool:
    """Whether the stream was closed; without the mark the last batches may be missing."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, len(_END_OF_STREAM)), 2)
        return file.read() == _END_OF_STREAM


def _slices(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, _BATCH):
        yield batch.slice(start, _BATCH)


def _parse(batches: Iterator[Any], format_: str) -> Iterator[NumberedRow]:
    """The rows of `batches`, whose first element is the schema."""
    number = 0
    try:
        names = Counter(next(batches).names)
        if duplicates := [name for name, count in names.items() if count > 1]:
            yield 1, duplicate_column(duplicates[0]).at_end_of_file()
            return
        for batch in batches:
            for row in _convert(batch):
                number += 1
                yield number, row
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = " ".join(str(error).split())[:200] or type(error).__name__
        broken = RowError("BrokenRow", f"not valid {format_}: {text}", "Write it again.")
        yield number + 1, broken.at_end_of_file()


def _convert(batch: Any) -> list[Any]:
    """The rows of a batch as dicts, or their RowErrors."""
    try:
        # Checked first: offsets that point anywhere would be followed.
        batch.validate(full=True)
        rows = _to_rows(_to_python_types(batch))
    except Exception:
        return [_convert_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    return rows


def _to_rows(batch: Any) -> list[Any]:
    """The rows of a batch, with maps as dicts; KeyError where a map has a key twice."""
    # pyarrow takes ten times as long with this option, whether there are maps or not.
    has_maps = any("map<" in str(kind) for kind in batch.schema.types)
    rows: list[Any] = batch.to_pylist(maps_as_pydicts="strict" if has_maps else None)
    return rows


def _convert_row(row: Any) -> Any:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.validate(full=True)
            _to_python_types_in(column).to_pylist(maps_as_pydicts="strict")
        except UnicodeDecodeError:
            return _not_utf8(name)
        except Exception as error:
            if "UTF8" in str(error):
                return _not_utf8(name)
            return RowError(
                "BrokenRow",
                f"the value of the column {name!r} cannot be read as {column.type}: "
                f"{' '.join(str(error).split())[:120]}",
                "Correct the value, write the column as text, or leave it out of the file.",
            )
    return _to_rows(_to_python_types(row))[0]


def _not_utf8(name: str) -> RowError:
    return RowError(
        "NotUTF8", f"the text of the column {name!r} is not UTF-8", "Save the texts as UTF-8."
    )


def _to_python_types(batch: Any) -> Any:
    import pyarrow

    columns = [_to_python_types_in(column) for column in batch.columns]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _to_python_types_in(column: Any) -> Any:
    """A column of types that Python has.

    Times are in microseconds; pandas writes nanoseconds. Floats of 32 bits get the digits that
    they were written with: 0.1 is not 0.10000000149011612.
    """
    target = _change_types(column.type, _to_microseconds)
    column = column if target == column.type else column.cast(target, safe=False)
    wide = _change_types(column.type, _to_double)
    if wide == column.type:
        return column
    return column.cast(_change_types(column.type, _to_text)).cast(wide)


def _to_microseconds(kind: Any) -> Any:
    import pyarrow
    from pyarrow import types

    if types.is_timestamp(kind) and kind.unit == "ns":
        return pyarrow.timestamp("us", kind.tz)
    if types.is_time64(kind) and kind.unit == "ns":
        return pyarrow.time64("us")
    return pyarrow.duration("us") if types.is_duration(kind) and kind.unit == "ns" else kind


def _to_double(kind: Any) -> Any:
    import pyarrow

    return pyarrow.float64() if kind == pyarrow.float32() else kind


def _to_text(kind: Any) -> Any:
    import pyarrow

    return pyarrow.string() if kind == pyarrow.float32() else kind


def _change_types(kind: Any, change: Callable[[Any], Any]) -> Any:
    """The type with its parts changed, at any depth of structs, lists, maps and dictionaries."""
    import pyarrow
    from pyarrow import types

    def deeper(part: Any) -> Any:
        return _change_types(part, change)

    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(deeper(field.type)) for field in kind])
    if types.is_map(kind):
        return pyarrow.map_(deeper(kind.key_type), deeper(kind.item_type))
    if types.is_dictionary(kind):
        values = deeper(kind.value_type)
        return kind if values == kind.value_type else values
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        values = kind.value_field.with_type(deeper(kind.value_type))
        if types.is_fixed_size_list(kind):
            return pyarrow.list_(values, kind.list_size)
        return pyarrow.list_(values) if types.is_list(kind) else pyarrow.large_list(values)
    return change(kind)

"""JSON Lines that one stage writes and another reads.

Only a line feed ends a line: texts may hold U+2028, U+2029 and U+0085, at which str.splitlines cuts
too, and which JSON leaves as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write each row as a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_json_lines` wrote."""
    with path.open("rb") as file:
        return [json.loads(line) for line in file]

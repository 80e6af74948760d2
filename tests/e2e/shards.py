"""A data set as people publish them: shards of splits, with tools, reasoning and broken rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHARDS, ROWS_PER_SHARD, HELD_OUT_ROWS = 4, 100, 20
BROKEN_LINES = {1: 7, 3: 99}
"""The line in a shard, by its number, that is cut off: 0.5 % of all rows."""
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content or '' }}{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}


def write_shards(folder: Path) -> None:
    """Write the splits train, validation and test into `folder`."""
    folder.mkdir(mode=0o755)
    for number in range(SHARDS):
        lines = [json.dumps(_row(number * ROWS_PER_SHARD + i)) for i in range(ROWS_PER_SHARD)]
        if number in BROKEN_LINES:
            at = BROKEN_LINES[number] - 1
            lines[at] = lines[at][:30]
        _write(folder / f"train-{number:05d}-of-{SHARDS:05d}.jsonl", lines)
    for split in ("validation", "test"):
        rows = [json.dumps(_row(10_000 + len(split) * 100 + i)) for i in range(HELD_OUT_ROWS)]
        _write(folder / f"{split}-00000-of-00001.jsonl", rows)


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o644)


def _row(number: int) -> dict[str, Any]:
    ask = {"role": "user", "content": f"How many of {number}?"}
    answer = {"role": "assistant", "content": f"There are {number % 7}."}
    match number % 3:
        case 0:
            function = {"name": "stock", "arguments": json.dumps({"item": number})}
            call = {"id": "c1", "type": "function", "function": function}
            calling = {"role": "assistant", "content": None, "tool_calls": [call]}
            result = {"role": "tool", "tool_call_id": "c1", "content": str(number % 7)}
            return {"messages": [ask, calling, result, answer], "tools": [TOOL]}
        case 1:
            return {"messages": [ask, {**answer, "reasoning_content": f"{number} mod 7"}]}
        case _:
            return {"messages": [ask, answer], "id": number}

"""The speed, utilisation and memory that a run reports, and its history on a full volume."""

from __future__ import annotations

import json
from pathlib import Path

from tests.trainer.volumes import on_small_volume


def test_steps_that_do_not_fit_on_a_full_volume_are_written_later(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from finetune_trainer.training.throughput import History\n"
        "there = Path(sys.argv[1]); history = History(there / 'train-1.jsonl', rank=0)\n"
        "history.append(step=0)\n"
        "try:\n    (there / 'filler').open('wb', buffering=0).write(b'0' * 2**23)\n"
        "except OSError:\n    pass\n"
        "for step in range(1, 200):\n    history.append(step=step)\n"
        "before = (there / 'train-1.jsonl').read_text().count('\\n')\n"
        "(there / 'filler').unlink(); history.append(step=200)\n"
        "print(before, (there / 'train-1.jsonl').read_text())\n"
    )
    before, history = on_small_volume(tmp_path, code).split(" ", 1)
    assert int(before) < 200
    assert [json.loads(line)["step"] for line in history.splitlines() if line] == list(range(201))

"""When a rank imports bitsandbytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.training.imports import uses_bitsandbytes

from tests.trainer.jobs import make_run


@pytest.mark.parametrize(
    ("method", "optimizer", "config", "needed"),
    [
        ("LoRA", "AdamW", {}, False),
        ("Full", "Adafactor", {}, False),
        ("QLoRA", "AdamW", {}, True),
        ("LoRA", "PagedAdamW8bit", {}, True),
        ("LoRA", "AdamW", {"quantization_config": {}}, True),
    ],
)
def test_bitsandbytes_stays_where_something_is_quantised(
    tmp_path: Path, method: str, optimizer: str, config: dict[str, Any], needed: bool
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    run = make_run(tmp_path, tmp_path / "m")
    spec = {**run.raw_spec, "method": {"type": method}, "training": {"optimizer": optimizer}}
    assert uses_bitsandbytes(run.model_copy(update={"raw_spec": spec})) == needed

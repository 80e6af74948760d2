"""What a rank writes at once, and what it may write later."""

import json
from pathlib import Path

from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.runtime.telemetry import RankFile


def test_a_message_among_other_fields_is_written_at_once(tmp_path: Path) -> None:
    reporter = RankReporter(RankFile(tmp_path, 0))
    reporter.report("training")
    reporter.report(message="skipped a checkpoint", step=7)
    (file,) = tmp_path.iterdir()
    written = json.loads(file.read_text())
    assert (written["message"], written["step"]) == ("skipped a checkpoint", 7)

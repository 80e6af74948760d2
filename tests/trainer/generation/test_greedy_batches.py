"""Which prompts are answered in one batch."""

from __future__ import annotations

from finetune_trainer.generation.greedy import BATCH_SIZE, TOKENS_PER_BATCH, batch_prompts


def test_short_prompts_share_batches_by_their_number() -> None:
    batches = list(batch_prompts([100, 90, *[80] * BATCH_SIZE], 128))
    assert [len(batch) for batch in batches] == [BATCH_SIZE, 2]
    assert batches[-1] == [1, 0]


def test_long_prompts_share_batches_by_their_tokens() -> None:
    lengths = [10_000] * 12 + [TOKENS_PER_BATCH * 2]
    batches = list(batch_prompts(lengths, 500))
    assert [len(batch) for batch in batches] == [6, 6, 1]
    assert sorted(index for batch in batches for index in batch) == list(range(13))

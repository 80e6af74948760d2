"""Batches of sequences of similar length."""

from finetune_trainer.data.length_batches import group_by_length


def test_batches_with_their_padding_fit_the_budget_and_hold_every_sequence_once() -> None:
    assert group_by_length([3, 9, 40, 10, 3, 1], 20) == [[2], [3, 1], [0, 4, 5]]
    assert group_by_length([], 20) == []

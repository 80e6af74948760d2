"""Batches of sequences of similar length, so that little of a batch is padding."""

from collections.abc import Sequence


def group_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences in batches, longest first.

    A batch with its padding has at most `max_tokens` tokens, or is one sequence.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches

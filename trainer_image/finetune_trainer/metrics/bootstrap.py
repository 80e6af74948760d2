"""How sure an improvement is: paired bootstrap over held-out rows (Koehn 2004)."""

import numpy as np

RESAMPLES = 1000


def bootstrap(base: np.ndarray, tuned: np.ndarray, seed: int) -> tuple[float, float]:
    """2.5th and 97.5th percentile of 100 * (base - tuned) / base over resampled rows.

    Rows are drawn with replacement, the same for both models. Both losses of a resample share
    their token count, which therefore cancels.
    """
    dice = np.random.default_rng(seed)
    improvements = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        drawn = dice.integers(0, len(base), len(base))
        before = base[drawn].sum()
        improvements[resample] = 100 * (before - tuned[drawn].sum()) / before
    low, high = np.percentile(improvements, [2.5, 97.5])
    return float(low), float(high)

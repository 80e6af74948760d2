"""The interval of an improvement: paired bootstrap over held-out items (Koehn 2004)."""

import numpy as np

RESAMPLES = 1000


def bootstrap_interval(base: np.ndarray, tuned: np.ndarray, seed: int) -> tuple[float, float]:
    """2.5th and 97.5th percentile of 100 * (base - tuned) / base over resampled items.

    `base` and `tuned` are float64 [items]. Items are drawn with replacement, the same for both
    models. Both losses of a resample have the same token count, which therefore cancels.
    """
    generator = np.random.default_rng(seed)
    improvements = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        resampled = generator.integers(0, len(base), len(base))
        base_loss = base[resampled].sum()
        improvements[resample] = 100 * (base_loss - tuned[resampled].sum()) / base_loss
    low, high = np.percentile(improvements, [2.5, 97.5])
    return float(low), float(high)

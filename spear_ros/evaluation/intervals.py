"""Confidence intervals of success rates."""

import math


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion; (0, 1) where nothing was tried.

    Unlike the normal approximation it stays inside [0, 1] and is not empty at 0 or n successes
    (E. B. Wilson, JASA 1927).

    Args:
        successes: Number of successes, 0 <= successes <= trials.
        trials: Number of trials.
        z: Standard score; 1.96 = 95 %.
    """
    assert 0 <= successes <= trials, (successes, trials)
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    spread = share * (1 - share) / trials + square / (4 * trials * trials)
    half = z / (1 + square / trials) * math.sqrt(spread)
    # At the ends rounding would leave 1e-17 outside.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == trials else min(1.0, middle + half)
    return low, high

"""The interval of a mean over few trainings."""

import numpy as np

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a 95 % interval of the mean of so many values."""


def mean_and_half(values):
    """Mean, and half its 95 % interval (Student's t); two to five values."""
    return np.mean(values), T_975[len(values)] * np.std(values, ddof=1) / np.sqrt(len(values))

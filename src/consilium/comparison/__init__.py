"""Comparing experiments: the same seeds, data and budget, paired differences with intervals."""

from consilium.comparison.entrants import load_experiments
from consilium.comparison.run import CompareResult, compare

__all__ = ["CompareResult", "compare", "load_experiments"]

"""Judging predictions: metric functions, their uncertainty, evaluators, and the report."""

"""Judging answers that are labels."""

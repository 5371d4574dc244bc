"""Judging how images and texts find each other."""

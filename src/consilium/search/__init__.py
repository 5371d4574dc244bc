"""Searching one's own collection by text or image, through an index of a trained expert."""

from consilium.search.index import Hit, Index

__all__ = ["Hit", "Index"]

"""Losses: from logits and targets to one number."""

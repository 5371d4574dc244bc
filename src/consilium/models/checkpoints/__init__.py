"""Whole image-text models as other libraries save them: what they are made of, and their weights."""

"""Data: cases, sources, splits, store, mixture, images, batches."""

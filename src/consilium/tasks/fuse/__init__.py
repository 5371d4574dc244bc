"""Image + text classifiers that survive a missing modality."""

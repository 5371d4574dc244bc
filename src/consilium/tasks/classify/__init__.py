"""The family ``classify``: images of a case into a path of the label tree, or into any number of classes."""

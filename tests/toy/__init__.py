"""A fifth kind of task, small enough to read at once, that proves the house open: it is one folder and one line."""

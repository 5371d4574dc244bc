"""Pictures of every format as pixels."""

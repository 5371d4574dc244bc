"""Which cases a task works with, and in which order it draws them."""

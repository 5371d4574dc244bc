"""Tasks: model, loss, and what a prediction means."""

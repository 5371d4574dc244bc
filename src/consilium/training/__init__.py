"""Training: the loop, optimizers, hooks, checkpoints, run folders."""

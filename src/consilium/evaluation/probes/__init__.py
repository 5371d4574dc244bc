"""What frozen image features can tell: zero-shot by prompts, nearest neighbours, a linear head, few images a class."""

"""What is looked for in data before a figure that comes of it is trusted."""

"""Sources: from a configured place to cases, row by row."""

"""What every other part of Consilium builds on; it knows nothing else of the package."""

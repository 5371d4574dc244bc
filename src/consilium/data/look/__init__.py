"""Looking at data."""

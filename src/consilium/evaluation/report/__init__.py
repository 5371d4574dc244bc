"""The report: its frame, its charts, its words."""

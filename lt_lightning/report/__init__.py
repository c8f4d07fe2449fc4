"""The report of what has been run: one HTML page, pictures and tables."""

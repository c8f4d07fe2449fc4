"""Reports of what has been run."""

FOLDER, FILE = "report", "report.html"

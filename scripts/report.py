"""`python scripts/report.py --help` tells what this command does."""

from lt_lightning.cli import report

if __name__ == "__main__":
    report()

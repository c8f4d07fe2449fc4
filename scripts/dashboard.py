"""`python scripts/dashboard.py --help` tells what this command does."""

from lt_lightning.cli import dashboard

if __name__ == "__main__":
    dashboard()

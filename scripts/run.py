"""`python scripts/run.py --help` tells what this command does."""

from lt_lightning.cli import run

if __name__ == "__main__":
    run()

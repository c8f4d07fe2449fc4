"""`python scripts/stability.py --help` tells what this command does."""

from lt_lightning.cli import stability

if __name__ == "__main__":
    stability()

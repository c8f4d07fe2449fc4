"""`python scripts/export.py --help` tells what this command does."""

from lt_lightning.cli import export

if __name__ == "__main__":
    export()

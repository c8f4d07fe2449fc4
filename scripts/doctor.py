"""`python scripts/doctor.py --help` tells what this command does."""

from lt_lightning.cli import doctor

if __name__ == "__main__":
    doctor()

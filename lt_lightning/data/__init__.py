"""Data sets, one file each, on the base of `module.py`; small sets live on the training device."""

"""Classifiers of images and of token sequences, one file a family: plain modules of (classes, channels, ...)."""

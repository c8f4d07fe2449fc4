"""Image classifiers, one file a family: plain modules of (classes, channels), any image size, traceable by torch.fx."""

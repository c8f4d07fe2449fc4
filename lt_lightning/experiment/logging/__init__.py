"""What is logged: csv, W&B, TensorBoard."""

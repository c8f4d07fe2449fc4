"""What networks cost: time, memory, operations, and whether two of them compute the same."""

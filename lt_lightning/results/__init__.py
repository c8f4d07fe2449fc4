"""What a folder of results holds and says."""

"""What lies on disk: files written whole or not at all, and where a search keeps what."""

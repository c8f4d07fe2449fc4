"""What a configuration asks for: its checks, its fingerprint, its tasks."""

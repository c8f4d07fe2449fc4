"""What measures the project itself: networks, layers, peers, a training step, a search; and its evidence."""

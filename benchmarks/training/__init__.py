"""What a training, a round and a search cost in time: measured here, beside a bare loop and peers."""

"""Several processes: starting them from any launcher, what they tell each other, BatchNorm over all of them."""

"""From a round's mask to one that hardware can use, with the plan that executes it."""

"""From a ticket's plan to a network that is smaller, and what networks cost: time, memory, operations."""

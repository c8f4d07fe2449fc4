"""From a ticket's plan to a smaller network, and what networks cost in operations and in time."""

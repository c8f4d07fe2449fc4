"""From a ticket's plan to a network that is smaller: channels left out, or layers that compute their blocks only."""

"""Networks whose layers compute their blocks only."""

"""Networks rebuilt with fewer channels."""

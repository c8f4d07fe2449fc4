"""Names of tickets that no structure may take; quick to import."""

DENSE = "dense"
UNSTRUCTURED = "unstructured"

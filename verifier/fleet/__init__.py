"""Several endpoints, and where they stand."""

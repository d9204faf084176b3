"""Evidence to a decision; the only place of thresholds between checks."""

"""What a verdict looks like to a reader or a machine: form only."""

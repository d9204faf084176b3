"""The checks: one file or small folder each."""

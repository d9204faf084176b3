"""Tells whether a hosting endpoint serves the open weights it claims."""

__version__ = "0.1.0"

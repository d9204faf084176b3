"""The published model on this machine; knows no host."""

"""Which rendering of the chat template a host serves."""

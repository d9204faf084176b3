"""API keys: known, struck out, and kept from processes that need none."""

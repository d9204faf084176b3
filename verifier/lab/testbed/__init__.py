"""A laboratory instrument: a host whose weights, and so whose faults, are known."""

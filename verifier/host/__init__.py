"""What leaves this machine and comes back; knows no weights."""

"""What an endpoint can do, by effect."""

"""Numbers in, numbers out; knows neither host nor model."""

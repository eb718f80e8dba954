"""The HTTP layer clients talk to."""

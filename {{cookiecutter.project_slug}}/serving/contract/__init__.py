"""What clients depend on: requests, replies, stream events, errors. No engine's name is here."""

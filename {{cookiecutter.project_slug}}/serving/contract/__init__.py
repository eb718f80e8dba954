"""What clients depend on: requests, replies, stream events and errors. No engine's name appears here."""

"""Load tests that answer "how many users, and what breaks first": `python -m loadtests --help`."""

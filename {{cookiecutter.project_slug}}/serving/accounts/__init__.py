"""Who may use the service: keys, and the database they are kept in."""

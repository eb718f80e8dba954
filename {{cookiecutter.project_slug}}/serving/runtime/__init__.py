"""What runs: the model store, engine processes, their warm-up, and the routes to them."""

"""What is shipped: a Bento, an image made of it, and the list of what is in that."""

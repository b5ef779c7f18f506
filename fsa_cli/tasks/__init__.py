"""Tasks: what a function takes, how it is called, and the registry of all of them."""

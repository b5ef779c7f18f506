"""Tasks: their definitions, their registry, and the arguments that they take."""

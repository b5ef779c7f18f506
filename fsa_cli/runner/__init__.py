"""One run of a task: executed here, in its own session, and reported."""

"""Execute one run of a task, in its own session, and report its result."""

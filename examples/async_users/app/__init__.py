"""Users of every time zone, with async sessions: the same as `examples/users` otherwise."""

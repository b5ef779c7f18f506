"""A scope's sessions: how they are opened, what they did, and how they end."""

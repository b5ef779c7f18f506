"""The user's project: its settings, its app, its tasks, its own commands."""

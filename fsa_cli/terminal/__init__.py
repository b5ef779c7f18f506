"""Output for a person: streams, values as text, errors with the user's own line."""

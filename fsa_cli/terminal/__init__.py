"""What a person reads: output, values as text, errors with the user's own line."""

"""Sessions for FastAPI."""

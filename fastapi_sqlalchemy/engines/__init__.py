"""From a URL and arguments to a sync and an async engine."""

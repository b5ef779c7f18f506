"""The run ledger: what was due, who ran it, and how it ended. It knows nothing of APScheduler."""

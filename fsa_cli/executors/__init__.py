"""The adapters of the brokers that carry runs, loaded by name."""

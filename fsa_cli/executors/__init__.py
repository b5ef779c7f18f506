"""The brokers that carry runs, an adapter each."""

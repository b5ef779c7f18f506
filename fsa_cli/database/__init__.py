"""The user's database: connections, what is in it, SQL on it."""

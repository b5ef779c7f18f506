"""The user's database: connections, its tables, SQL on it."""

"""Everything on one connection per database, rolled back at the end."""

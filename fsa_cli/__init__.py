"""fsa: the operations tool of fastapi-sqlalchemy."""

"""SQLAlchemy sessions for FastAPI: in a request, and outside.

app.add_middleware(DBSessionMiddleware, db_url="sqlite:///app.db")

db.session.scalars(select(User)).all()           # in a route, or anything that it calls
await db.async_session.get(User, 1)

with db(): ...                                   # in a script, a thread, a scheduled job
async with db(): ...
"""

from .database import Database
from .exceptions import MissingSessionError, SessionNotInitialisedError
from .middleware import DBSessionMiddleware, db

__all__ = [
    "DBSessionMiddleware",
    "Database",
    "MissingSessionError",
    "SessionNotInitialisedError",
    "db",
]

__version__ = "1.0.0.dev0"

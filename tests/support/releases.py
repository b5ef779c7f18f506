"""What differs in the oldest releases that are allowed."""

import sqlalchemy
from packaging.version import Version

LOSES_CANCELLED_CONNECTIONS = Version(sqlalchemy.__version__) < Version("2.0.53")
"""Those that are cancelled while they are set up; one of aiosqlite while it works, too."""

LOSES_THEM = "SQLAlchemy before 2.0.53 loses a connection that is cancelled"

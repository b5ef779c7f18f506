"""The console: pages that show what ran, runs, waits and comes, and from which one acts.

    from fsa_cli import console

    app.include_router(console.router(access=who), prefix="/ops")

Importing this package imports none of Jinja2 and SQLAlchemy: they are loaded when the app starts.
"""

from __future__ import annotations

from fsa_cli.console.access import ACTIONS, Access
from fsa_cli.console.routes import router

__all__ = ["ACTIONS", "Access", "router"]

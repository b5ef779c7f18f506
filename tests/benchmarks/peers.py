"""The peers beside which this library is measured, each in a virtual environment of its own."""

import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

PEERS = {
    "fastapi_sqlalchemy_021": ["fastapi-sqlalchemy==0.2.1", "sqlalchemy[asyncio]<2.1"],
    "fastapi_async_sqlalchemy": ["fastapi-async-sqlalchemy>=0.8"],  # needs Python 3.12
    "fastapi_sqla": ["fastapi-sqla>=4"],
    "advanced_alchemy": ["advanced-alchemy"],
}
# The same FastAPI for all; fastapi-sqla 4.0 needs one below 0.142.
FASTAPI = f"fastapi=={version('fastapi')}"
DRIVERS = [FASTAPI, "uvicorn", "psycopg[binary]", "asyncpg", "aiosqlite", "greenlet"]
ENVIRONMENTS = Path(__file__).parent / ".environments"


def peer_python(app: str, folder: Path) -> str:
    """The Python of a peer's environment, made of the running Python when it is first needed."""
    home = folder / app
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            *DRIVERS,
            "greenlet",
            *PEERS[app],
        ]
        subprocess.run(install, check=True)
    return str(python)

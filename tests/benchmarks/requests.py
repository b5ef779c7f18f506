"""What one request costs, beside the same request without this library, and with its peers."""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
WORKER = HERE / "worker.py"

PEERS = {
    "fastapi_sqlalchemy_021": ["fastapi-sqlalchemy==0.2.1", "sqlalchemy[asyncio]<2.1"],
    "fastapi_async_sqlalchemy": ["fastapi-async-sqlalchemy"],
    "advanced_alchemy": ["advanced-alchemy"],
}
DRIVERS = ["fastapi", "psycopg[binary]", "aiosqlite", "greenlet"]


@dataclass
class Contestant:
    """One app in one case: a process that answers each line with seconds per request."""

    name: str
    app: str
    case: str
    python: str = sys.executable
    rounds_s: list[float] = field(default_factory=list)

    def start(self, url: str, cpu: int) -> None:
        self._process = subprocess.Popen(
            [self.python, str(WORKER), self.app, self.case, url, str(cpu)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def round(self, requests: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{requests}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.communicate()

    @property
    def median_us(self) -> float:
        return statistics.median(self.rounds_s) * 1e6


def measure(
    title: str, contestants: list[Contestant], url: str, options: argparse.Namespace
) -> None:
    """Run the contestants in turns and print each beside the first."""
    cpu = max(os.sched_getaffinity(0))
    for contestant in contestants:
        contestant.start(url, cpu)
        contestant.round(options.requests // 4)
    for _ in range(options.rounds):
        for contestant in contestants:
            contestant.rounds_s.append(contestant.round(options.requests))
    for contestant in contestants:
        contestant.stop()
    print(f"\n{title}")
    baseline = contestants[0].median_us
    for contestant in contestants:
        median = contestant.median_us
        print(f"  {contestant.name:48} {median:8.1f} us   {median / baseline:5.2f} x")


def peer_python(app: str, folder: Path) -> str:
    """The Python of a peer's own virtual environment, made when it is first needed."""
    home = folder / app
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *DRIVERS, *PEERS[app]]
        subprocess.run(install, check=True)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=600, help="requests in a round")
    parser.add_argument("--postgresql", metavar="URL", help="measure on this database too")
    parser.add_argument("--peers", action="store_true", help="measure the peers too")
    parser.add_argument("--environments", type=Path, default=HERE / ".environments")
    options = parser.parse_args()

    def peer(name: str, app: str, case: str) -> list[Contestant]:
        if not options.peers:
            return []
        return [Contestant(name, app, case, peer_python(app, options.environments))]

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        databases = {"SQLite": f"sqlite:///{folder}/benchmark.db"}
        if options.postgresql:
            databases["PostgreSQL"] = options.postgresql
        measure(
            "No database used",
            [
                Contestant("FastAPI alone", "bare", "unused"),
                Contestant("this library", "ours", "unused"),
                *peer("fastapi-sqlalchemy 0.2.1", "fastapi_sqlalchemy_021", "unused"),
                *peer("fastapi-async-sqlalchemy", "fastapi_async_sqlalchemy", "unused"),
                *peer("advanced-alchemy", "advanced_alchemy", "unused"),
            ],
            databases["SQLite"],
            options,
        )
        for database, url in databases.items():
            measure(
                f"Sync select, {database}",
                [
                    Contestant("Depends(get_db), commits after it answered", "depends", "sync"),
                    Contestant("this library", "ours", "sync"),
                    Contestant("this library, commit_on_exit", "ours_committing", "sync"),
                    *peer("fastapi-sqlalchemy 0.2.1", "fastapi_sqlalchemy_021", "sync"),
                    *peer("advanced-alchemy", "advanced_alchemy", "sync"),
                ],
                url,
                options,
            )
            measure(
                f"Async select, {database}",
                [
                    Contestant("async with in the route", "depends", "async"),
                    Contestant("this library", "ours", "async"),
                    Contestant("this library, commit_on_exit", "ours_committing", "async"),
                    *peer("fastapi-async-sqlalchemy", "fastapi_async_sqlalchemy", "async"),
                    *peer("advanced-alchemy", "advanced_alchemy", "async"),
                ],
                url,
                options,
            )


if __name__ == "__main__":
    main()

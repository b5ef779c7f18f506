"""What CPU time one request costs, beside the same without this library, and with its peers."""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from peers import ENVIRONMENTS, peer_python

HERE = Path(__file__).parent
WORKER = HERE / "worker.py"


@dataclass
class Contestant:
    """One app in one case: a process that answers each line with seconds of CPU per request."""

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

    @property
    def least_us(self) -> float:
        """That of the round which other work on the machine disturbed least."""
        return min(self.rounds_s) * 1e6


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
    baseline = contestants[0]
    for contestant in contestants:
        median, least = contestant.median_us, contestant.least_us
        print(
            f"  {contestant.name:44} median {median:7.1f} us  {median / baseline.median_us:5.2f} x"
            f"   least {least:7.1f} us  {least / baseline.least_us:5.2f} x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=600, help="requests in a round")
    parser.add_argument("--postgresql", metavar="URL", help="measure on this database too")
    parser.add_argument("--peers", action="store_true", help="measure the peers too")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
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
            _, _, rest = options.postgresql.partition("://")
            databases["PostgreSQL, asyncpg"] = f"postgresql+asyncpg://{rest}"
        measure(
            "No database used",
            [
                Contestant("FastAPI alone", "bare", "unused"),
                Contestant("this library", "ours", "unused"),
                *peer("fastapi-sqlalchemy 0.2.1", "fastapi_sqlalchemy_021", "unused"),
                *peer("fastapi-async-sqlalchemy", "fastapi_async_sqlalchemy", "unused"),
                *peer("fastapi-sqla", "fastapi_sqla", "unused"),
                *peer("advanced-alchemy", "advanced_alchemy", "unused"),
            ],
            databases["SQLite"],
            options,
        )
        for database, url in databases.items():
            if url.startswith("postgresql+asyncpg"):
                continue
            measure(
                f"Sync select, {database}",
                [
                    Contestant("Depends(get_db), commits after it answered", "depends", "sync"),
                    Contestant("this library", "ours", "sync"),
                    Contestant("this library, commit_on_exit", "ours_committing", "sync"),
                    *peer("fastapi-sqlalchemy 0.2.1", "fastapi_sqlalchemy_021", "sync"),
                    *peer("fastapi-sqla", "fastapi_sqla", "sync"),
                    *peer("advanced-alchemy", "advanced_alchemy", "sync"),
                ],
                url,
                options,
            )
        for database, url in databases.items():
            measure(
                f"Async select, {database}",
                [
                    Contestant("async with in the route", "depends", "async"),
                    Contestant("this library", "ours", "async"),
                    Contestant("this library, commit_on_exit", "ours_committing", "async"),
                    *peer("fastapi-async-sqlalchemy", "fastapi_async_sqlalchemy", "async"),
                    *peer("fastapi-sqla", "fastapi_sqla", "async"),
                    *peer("advanced-alchemy", "advanced_alchemy", "async"),
                ],
                url,
                options,
            )


if __name__ == "__main__":
    main()

"""The same tasks as in `engine_ours.py`, as PgQueuer's own, and a worker for them.

`pgq run` of 1.6 does not start with Typer 0.29.
"""

import asyncio
import os
import signal
import sys

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from telling import tell


async def main(concurrency: int) -> None:
    connection = await asyncpg.connect(
        os.environ["URL"].replace("+psycopg", ""), server_settings={"application_name": "pgq"}
    )
    queue = PgQueuer(AsyncpgDriver(connection))

    @queue.entrypoint("empty")
    async def empty(job: Job) -> None:
        pass

    @queue.entrypoint("tell")
    async def told(job: Job) -> None:
        tell()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queue.shutdown.set)
    await queue.run(batch_size=concurrency, max_concurrent_tasks=2 * concurrency)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

"""The same tasks as in `engine_ours.py`, as Procrastinate's own."""

import os

import procrastinate
from telling import tell

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ["URL"].replace("+psycopg", ""))
)


@app.task
async def empty() -> None:
    pass


@app.task(name="tell")
async def told() -> None:
    tell()

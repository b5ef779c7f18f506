"""An app with 300 tasks, each due every three minutes, that mounts the console."""

import os

from fastapi import FastAPI

from fastapi_sqlalchemy import DBSessionMiddleware
from fsa_cli import console, task

TASKS = 300

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url=os.environ["URL"])
app.include_router(console.router(access=lambda: ("operate", "bench")), prefix="/ops")


def nothing() -> None:
    """Do nothing."""


for number in range(TASKS):
    task(name=f"task{number}", schedule=f"{number % 3}-59/3 * * * *")(nothing)

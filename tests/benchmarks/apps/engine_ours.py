"""The tasks of `engines.py`, carried by each engine: one does nothing, one tells when it begins."""

import os

from fastapi import FastAPI
from telling import tell

from fastapi_sqlalchemy import DBSessionMiddleware
from fsa_cli import task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url=os.environ["URL"])


@task
async def empty_local() -> None:
    pass


@task
async def tell_local() -> None:
    tell()


@task(executor="procrastinate", queue="fsa")
async def empty_procrastinate() -> None:
    pass


@task(executor="procrastinate", queue="fsa")
async def tell_procrastinate() -> None:
    tell()


@task(executor="celery", queue="fsa")
def empty_celery() -> None:
    pass


@task(executor="celery", queue="fsa")
def tell_celery() -> None:
    tell()


@task(schedule="0 0 29 2 *")
def seldom() -> None:
    """Without a schedule no scheduler starts, and it is one that sends messages again."""

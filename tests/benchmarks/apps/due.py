"""An app whose tasks are all due at one instant (`AT`, seconds since 1970); tells when they begin.

`KIND` is `empty`, or `write` (each writes a row). `COUNT` is how many; `SPREAD` is how many seconds
each is due after the one before it; `EVERY` instead of `AT` makes them recur. At the end a line of
JSON on stdout has how many milliseconds late each one was.
"""

import atexit
import json
import os
import time
from array import array
from datetime import UTC, datetime

from apscheduler.triggers.date import DateTrigger  # type: ignore[import-untyped]
from fastapi import FastAPI
from sqlalchemy import text

from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import TaskContext, task

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url=os.environ["URL"])

COUNT, KIND = int(os.environ["COUNT"]), os.environ.get("KIND", "empty")
AT, EVERY = float(os.environ.get("AT", 0)), os.environ.get("EVERY")
INSERT = text("INSERT INTO written (n) VALUES (1)")
late_ms = array("f")  # little enough for what `--memory-runs` looks at
SPREAD = float(os.environ.get("SPREAD", 0))


def empty(context: TaskContext) -> None:
    assert context.scheduled_at is not None
    late_ms.append((time.time() - context.scheduled_at.timestamp()) * 1000)


def write(context: TaskContext) -> None:
    empty(context)
    db.session.execute(INSERT)


for number in range(COUNT):
    at = datetime.fromtimestamp(AT + number * SPREAD, UTC)
    task(name=f"task{number}", schedule=EVERY or DateTrigger(at))(
        {"empty": empty, "write": write}[KIND]
    )

atexit.register(lambda: print(json.dumps([round(each, 1) for each in late_ms]), flush=True))

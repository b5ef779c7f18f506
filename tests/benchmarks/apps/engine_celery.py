"""The tasks of `engine_ours.py` as Celery's own; `RESULTS`: the URL of a result backend."""

import os

import celery  # type: ignore[import-untyped]
from telling import tell

app = celery.Celery("own", broker=os.environ["REDIS"], backend=os.environ.get("RESULTS"))
app.conf.update(task_default_queue="own", task_ignore_result="RESULTS" not in os.environ)


@app.task  # type: ignore[untyped-decorator]
def empty() -> None:
    pass


@app.task  # type: ignore[untyped-decorator]
def told() -> None:
    tell()

"""APScheduler alone, with its SQLAlchemyJobStore: as many jobs due at one instant, no history."""

import json
import os
import sys
import time
from datetime import UTC, datetime

from apscheduler.executors.pool import ThreadPoolExecutor  # type: ignore[import-untyped]
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore  # type: ignore[import-untyped]
from apscheduler.schedulers.background import (  # type: ignore[import-untyped]
    BackgroundScheduler,
)

AT, COUNT = float(os.environ["AT"]), int(os.environ["COUNT"])
late_ms: list[float] = []


def empty() -> None:
    late_ms.append((time.time() - AT) * 1000)


if __name__ == "__main__":
    sys.modules["raw_apscheduler"] = sys.modules["__main__"]
    empty.__module__ = "raw_apscheduler"
    scheduler = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=os.environ["URL"])},
        executors={"default": ThreadPoolExecutor(7)},
        job_defaults={"misfire_grace_time": None},
        timezone=UTC,
    )
    scheduler.start(paused=True)
    for number in range(COUNT):
        scheduler.add_job(empty, "date", run_date=datetime.fromtimestamp(AT, UTC), id=str(number))
    print("ready", flush=True)
    scheduler.resume()
    while len(late_ms) < COUNT and time.time() < AT + 60:
        time.sleep(0.05)
    print(json.dumps([round(each, 1) for each in late_ms]), flush=True)
    scheduler.shutdown(wait=False)

"""`examples/seed`: the document that the project was created from, running."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

from support.processes import Run
from support.web import ServedProcess

TESTS = Path(__file__).parents[1]
SEED = TESTS.parent / "examples" / "seed"

# The scheduler lives in the process that serves the app, so the job is moved to now from there.
# Without a grace time, a slow machine would make APScheduler skip the job as a misfire.
RUN_THE_JOB_NOW = """
from datetime import UTC, datetime
import httpx
from app.main import app
from support.waiting import wait_until
from support.web import serve_app

with serve_app(app) as served:
    assert httpx.get(f"{served.base_url}/user_counts").json() == []
    (job,) = app.state.scheduler.get_jobs()
    print(job.trigger)
    job.modify(next_run_time=datetime.now(UTC), misfire_grace_time=None)
    counts = wait_until(lambda: httpx.get(f"{served.base_url}/user_counts").json(), "a count")
    print([row["count"] for row in counts])
"""


def test_the_seed_app_answers_its_users(
    serve_process: Callable[..., AbstractContextManager[ServedProcess]],
) -> None:
    with serve_process("app.main:app", cwd=SEED) as served:
        users = httpx.get(f"{served.base_url}/users").json()
        assert [user["name"] for user in users] == ["Ada", "Grace"]


def test_the_seed_job_counts_the_users_for_the_routes(python: Run) -> None:
    done = python("-c", RUN_THE_JOB_NOW, cwd=SEED, env={"PYTHONPATH": str(TESTS)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cron[hour='0']\n[2]\n"

"""Where the ledger is not in the app's database: what was committed there has succeeded."""

import time
from collections.abc import Callable

from support.backends import Backend
from support.oracle import Verdict
from support.replicas import Replicas, Scheduled

# A process that finds the file `die` dies right after its COMMIT, before the ledger hears of it.
DIES = """
from sqlalchemy import event
from sqlalchemy.orm import Session

@event.listens_for(Session, "after_commit")
def die(session):
    if getattr(session, "fsa_activity", None) is not None and os.path.exists("die"):
        os.unlink("die")
        os.kill(os.getpid(), 9)

@task(schedule="every 1s")
def marked(context: TaskContext):
    note(context)
    write(context)

@task(schedule="every 1s", on_crash="retry")
def retried(context: TaskContext):
    note(context)
    write(context)

@task(schedule="every 1s", on_crash="retry")
async def asynchronous(context: TaskContext):
    note(context)
    await write_async(context)
"""


def test_a_run_whose_process_died_after_its_commit_has_succeeded_once(
    sqlite: Backend,
    is_long: bool,
    replicas_on: Callable[..., Replicas],
    judged: Callable[..., Verdict],
) -> None:
    replicas = replicas_on(sqlite)
    replicas.lay(
        DIES,
        [
            Scheduled("marked"),
            Scheduled("retried", on_crash="retry"),
            Scheduled("asynchronous", on_crash="retry"),
        ],
    )
    replicas.start_all(2)

    for _ in range(20 if is_long else 3):
        (replicas.directory / "die").touch()
        died = None
        while died is None:
            died = next((each for each in replicas.replicas if not each.alive), None)
            time.sleep(0.02)
        replicas.note_in_flight(died.process.pid)
        replicas.faults += 1
        replicas.restart(died)
        replicas.wait_up()

    judged(replicas)
    assert "succeeded after all" in replicas.said

"""The document that this project was created from, as a running app.

What it shows is left as it is written there: `on_event`, `AsyncIOScheduler(timezone=pytz.utc)`,
`with db():` in the job, `sqlite://`. Added is what a fragment lacks: tables, two users, a route
that shows the counts, and the scheduler's end. Its last line, `return users`, names nothing.
"""

import pytz
from apscheduler.schedulers.asyncio import AsyncIOScheduler  # other schedulers are available
from fastapi import FastAPI

from fastapi_sqlalchemy import DBSessionMiddleware  # middleware helper
from fastapi_sqlalchemy import db  # an object to provide global access to a database session

from app.models import Base, User, UserCount

app = FastAPI()

app.add_middleware(DBSessionMiddleware, db_url="sqlite://")

# once the middleware is applied, any route can then access the database session
# from the global ``db``


@app.get("/users")
def get_users():
    users = db.session.query(User).all()

    return users


@app.get("/user_counts")
def get_user_counts():
    return db.session.query(UserCount).all()


@app.on_event("startup")
async def startup_event():
    with db():
        Base.metadata.create_all(db.session.connection())
        db.session.add_all([User(name="Ada"), User(name="Grace")])
        db.session.commit()

    scheduler = AsyncIOScheduler(timezone=pytz.utc)
    scheduler.start()
    scheduler.add_job(count_users_task, "cron", hour=0)  # runs every night at midnight
    app.state.scheduler = scheduler


@app.on_event("shutdown")
async def shutdown_event():
    app.state.scheduler.shutdown()


def count_users_task():
    """Count the number of users in the database and save it into the user_counts table."""

    # we are outside of a request context, therefore we cannot rely on ``DBSessionMiddleware``
    # to create a database session for us. Instead, we can use the same ``db`` object and
    # use it as a context manager, like so:

    with db():
        user_count = db.session.query(User).count()

        db.session.add(UserCount(user_count))
        db.session.commit()

    # no longer able to access a database session once the db() context manager has ended

import csv
from datetime import datetime
from pathlib import Path

import pytz
from fastapi_sqlalchemy import db
from fsa_cli import task
from sqlalchemy import func, select

from app.models import AtWorkCount, Base, Country, User, UserCount

# The tz database's iso3166.tab and zone.tab (in the public domain) as one table.
ZONES = Path(__file__).parent / "zones.csv"


@task
def load_countries() -> int:
    """Load the tz database's countries, and one user for the city of each of its zones.

    Makes the tables where they are missing. What is there already is left as it is, so that the
    task may run again. Returns the number of new users.
    """
    Base.metadata.create_all(db.session.connection())
    with ZONES.open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))

    names = {row["country_code"]: row["country"] for row in rows}
    for code in db.session.scalars(select(Country.code)):
        names.pop(code, None)
    db.session.add_all(Country(code, name) for code, name in names.items())
    db.session.flush()  # users refer to countries

    taken = set(db.session.scalars(select(User.timezone)))
    users = [
        User(city(row["timezone"]), row["country_code"], row["timezone"])
        for row in rows
        if row["timezone"] not in taken
    ]
    db.session.add_all(users)
    return len(users)


def city(timezone: str) -> str:
    """`America/Argentina/Buenos_Aires` is named after Buenos Aires."""
    return timezone.rpartition("/")[2].replace("_", " ")


@task(schedule="0 0 * * *", timezone=pytz.utc)  # every night at midnight
def count_users(active: bool = True) -> int:
    """Count the users and store the total."""
    users = select(func.count()).select_from(User).where(User.active == active)
    total = db.session.scalar(users) or 0
    db.session.add(UserCount(total))
    return total


@task(schedule="every 10s")
def count_users_at_work() -> int:
    """Count the users for whom it is between nine and five, and store the number."""
    timezones = db.session.scalars(select(User.timezone).where(User.active))
    now = datetime.now(pytz.utc)
    at_work = sum(9 <= now.astimezone(pytz.timezone(zone)).hour < 17 for zone in timezones)
    db.session.add(AtWorkCount(at_work))
    return at_work

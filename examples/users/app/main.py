import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi_sqlalchemy import DBSessionMiddleware, db
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from app.models import AtWorkCount, Country, User, UserCount

SQLITE_FILE = Path(__file__).parent.parent / "users.db"
DATABASE_URL = os.environ.get("USERS_DATABASE_URL", f"sqlite:///{SQLITE_FILE}")

app = FastAPI(title="Users of every time zone")
app.add_middleware(DBSessionMiddleware, db_url=DATABASE_URL, commit_on_exit=True)


class NewUser(BaseModel):
    name: str
    country_code: str
    timezone: str


class UserOut(NewUser):
    model_config = ConfigDict(from_attributes=True)

    id: int
    active: bool


class CountOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    count: int
    counted_at: datetime


@app.get("/users", response_model=list[UserOut])
def list_users(country: str | None = None, limit: int = 100) -> Sequence[User]:
    users = select(User).order_by(User.id).limit(limit)
    if country is not None:
        users = users.where(User.country_code == country)
    return db.session.scalars(users).all()


@app.get("/users/{user_id}", response_model=UserOut)
def read_user(user_id: int) -> User:
    user = db.session.get(User, user_id)
    if user is None:
        raise HTTPException(404, "no such user")
    return user


@app.post("/users", response_model=UserOut, status_code=201)
def create_user(new: NewUser) -> User:
    if db.session.get(Country, new.country_code) is None:
        raise HTTPException(422, "no such country")
    user = User(**new.model_dump())
    db.session.add(user)
    db.session.flush()  # gives the user its id; the middleware commits
    return user


@app.get("/user-counts", response_model=list[CountOut])
def list_user_counts() -> Sequence[UserCount]:
    return db.session.scalars(select(UserCount).order_by(UserCount.id)).all()


@app.get("/at-work-counts", response_model=list[CountOut])
def list_at_work_counts() -> Sequence[AtWorkCount]:
    return db.session.scalars(select(AtWorkCount).order_by(AtWorkCount.id)).all()

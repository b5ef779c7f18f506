from datetime import datetime

from sqlalchemy import ForeignKey, String, func
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column


class Base(MappedAsDataclass, DeclarativeBase):
    pass


class Country(Base):
    __tablename__ = "countries"

    code: Mapped[str] = mapped_column(String(2), primary_key=True)
    name: Mapped[str] = mapped_column(String(80))


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    country_code: Mapped[str] = mapped_column(ForeignKey(Country.code), index=True)
    timezone: Mapped[str] = mapped_column(String(40))
    active: Mapped[bool] = mapped_column(default=True)


class UserCount(Base):
    """How many users there were."""

    __tablename__ = "user_counts"

    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    count: Mapped[int]
    counted_at: Mapped[datetime] = mapped_column(init=False, server_default=func.now())


class AtWorkCount(Base):
    """For how many users it was a working hour."""

    __tablename__ = "at_work_counts"

    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    count: Mapped[int]
    counted_at: Mapped[datetime] = mapped_column(init=False, server_default=func.now())

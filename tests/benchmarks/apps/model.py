"""The table that every contestant reads one row of."""

from sqlalchemy import String, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class BenchmarkUser(Base):
    __tablename__ = "fsa_benchmark_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))


QUERY = select(BenchmarkUser).where(BenchmarkUser.id == 1)


def sync_url(url: str) -> str:
    return async_url(url).replace("+asyncpg://", "+psycopg://").replace("+aiosqlite://", "://")


def async_url(url: str) -> str:
    """With psycopg, or asyncpg where the URL says so."""
    url = url.replace("postgresql://", "postgresql+psycopg://")
    return url.replace("sqlite://", "sqlite+aiosqlite://")


def store(url: str) -> None:
    engine = create_engine(sync_url(url))
    try:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(BenchmarkUser(id=1, name="ann"))
            session.commit()
    except IntegrityError:
        pass  # another contestant was first
    engine.dispose()

from sqlalchemy import Column, Integer, String
from sqlalchemy.orm import declarative_base

Base = declarative_base()


class User(Base):
    __tablename__ = "users"

    id = Column(Integer, primary_key=True)
    name = Column(String)


class UserCount(Base):
    __tablename__ = "user_counts"

    id = Column(Integer, primary_key=True)
    count = Column(Integer)

    def __init__(self, count):
        self.count = count

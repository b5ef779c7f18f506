"""The bodies of `due.py` that write, in `with db():` on as many threads, without a ledger."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from fastapi_sqlalchemy import db

INSERT = text("INSERT INTO written (n) VALUES (1)")
COUNT = int(os.environ["COUNT"])

db.configure(db_url=os.environ["URL"])
late_ms: list[float] = []
began = 0.0


def write(number: int) -> None:
    with db(commit_on_exit=True):
        late_ms.append((time.time() - began) * 1000)
        db.session.execute(INSERT)


with ThreadPoolExecutor(7) as threads:
    list(threads.map(write, range(7)))  # connects
    late_ms.clear()
    began = time.time()
    list(threads.map(write, range(COUNT)))
print(json.dumps([round(each, 1) for each in late_ms]), flush=True)

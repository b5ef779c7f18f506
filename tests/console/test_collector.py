"""No page waits for the garbage collector, and the app has it back afterwards."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request

from fsa_cli.console import answers
from fsa_cli.console.access import Access
from fsa_cli.console.collector import uncollected
from fsa_cli.console.source import Source
from fsa_cli.ledger.enqueue import insert_running
from fsa_cli.project import environments
from fsa_cli.project.settings import read
from support.ledgers import make_node, open_ledger


@pytest.fixture
def collections() -> Iterator[list[set[str]]]:
    """For each collection of the eager collector here, the functions that it came in between."""
    seen: list[set[str]] = []

    def note(phase: str, info: dict[str, int]) -> None:
        names, frame = set(), sys._getframe(1)
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        seen.append(names)

    threshold = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(10)
    yield seen
    gc.set_threshold(*threshold)
    gc.callbacks.remove(note)


@pytest.mark.parametrize("name", ["", "tasks", "runs"])
def test_none_comes_while_a_page_is_made(
    tmp_path: Path, collections: list[set[str]], name: str
) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.create()
    for _ in range(30):
        assert insert_running(ledger, make_node(ledger).id, "ship", "{}") is not None
    settings = read(directory=tmp_path)
    source = Source(ledger, {}, settings, environments.of(settings))
    address = {"type": "http", "method": "GET", "path": f"/{name}", "headers": []}
    request = Request({**address, "query_string": b"", "server": ("here", 80)})
    shown = answers._shown(request, source, name, Access())
    assert b"ship" in shown.body or name == "tasks"
    assert gc.isenabled()
    ledger.dispose()
    # Some come before there is anything to make.
    assert [names for names in collections if "_shown" in names]
    assert not [names for names in collections if names & {"look", "context", "render"}]


def test_who_has_turned_it_off_keeps_it_so() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_is_back_at_the_end_of_whoever_came_first() -> None:
    inside, leave = threading.Event(), threading.Event()

    def second() -> None:
        with uncollected():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=second)
    with pytest.raises(ZeroDivisionError), uncollected():
        thread.start()
        assert inside.wait(10)
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()

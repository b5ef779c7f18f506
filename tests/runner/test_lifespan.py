"""The app's lifespan, on a loop of `fsa`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI

from fsa_cli.runner import lifespan
from fsa_cli.runner.lifespan import Lifespan


def test_one_that_takes_long_is_said_to_be_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifespan, "_LONG_S", 0.05)

    @asynccontextmanager
    async def slow(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.sleep(0.2)
        yield

    async def start_and_stop() -> None:
        started = Lifespan(FastAPI(lifespan=slow))
        await started.start()
        await started.stop()

    asyncio.run(start_and_stop())

    assert [record.getMessage() for record in caplog.records] == [
        "the app's lifespan has not begun after 0.05 s: waiting for it"
    ]

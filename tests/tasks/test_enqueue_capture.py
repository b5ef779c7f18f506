"""A dry run counts the runs that its own context asks for, and no other thread's."""

import asyncio
import threading

from fsa_cli.tasks.enqueue_capture import capture, captured


def test_inside_each_task_is_counted_and_outside_nothing_is() -> None:
    assert captured("ship") is False
    with capture() as counts:
        assert [captured("ship"), captured("ship"), captured("count")] == [True, True, True]
    assert captured("ship") is False

    assert counts == {"ship": 2, "count": 1}


def test_another_thread_enqueues_meanwhile() -> None:
    seen: list[bool] = []
    with capture() as counts:
        thread = threading.Thread(target=lambda: seen.append(captured("ship")))
        thread.start()
        thread.join()

    assert (seen, counts) == ([False], {})


def test_coroutines_and_threads_of_the_dry_run_itself_are_counted() -> None:
    async def work() -> list[bool]:
        return [captured("ship"), await asyncio.to_thread(captured, "ship")]

    with capture() as counts:
        assert asyncio.run(work()) == [True, True]

    assert counts == {"ship": 2}

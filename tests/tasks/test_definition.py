"""@task, the registry, and what importing them costs; `fsa tasks`."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fsa_cli import Task, TaskContext, on_failure, task
from fsa_cli.exceptions import DuplicateTask, TaskDefinitionError
from fsa_cli.tasks.registry import registry
from fsa_cli.tasks.signature import signature_of
from support.processes import Run


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    registry.clear()
    yield
    registry.clear()


def test_a_task_is_the_function_itself() -> None:
    def add(a: int, b: int = 1) -> int:
        """Add.

        More.
        """
        return a + b

    decorated = task(add)

    assert decorated is add
    assert decorated(1, b=2) == 3
    assert isinstance(decorated.task, Task)
    assert registry.get("add") is decorated.task
    assert (decorated.task.name, decorated.task.summary) == ("add", "Add.")


def test_options_are_kept_as_they_were_given() -> None:
    @task(
        name="nightly",
        schedule="not read before it is needed",
        timezone="Nowhere/Land",
        args={"n": 1},
        timeout_s=60,
        commit=False,
        database="reports",
        executor="celery",
        queue="mail",
        tags=["slow"],
    )
    async def work(n: int) -> None: ...

    made = work.task
    assert (made.name, made.schedule, made.timezone) == (
        "nightly",
        "not read before it is needed",
        "Nowhere/Land",
    )
    assert (made.args, made.timeout_s, made.commit) == ({"n": 1}, 60, False)
    assert (made.database, made.tags, made.is_async) == ("reports", {"slow"}, True)
    assert (made.executor, made.queue) == ("celery", "mail")


def test_a_duplicate_name_names_both_places() -> None:
    @task(name="work")
    def one() -> None: ...

    with pytest.raises(DuplicateTask) as caught:

        @task(name="work")
        def two() -> None: ...

    here = Path(__file__).name
    first, second = one.__code__.co_firstlineno, one.__code__.co_firstlineno + 5  # type: ignore[attr-defined]
    message = caught.value.message
    assert "two tasks are named 'work'" in message
    assert f"{here}:{first} and " in message
    assert message.endswith(f"{here}:{second}")


def write_module(directory: Path, source: str) -> str:
    name = f"tasks_of_{directory.name}"
    (directory / f"{name}.py").write_text(source)
    importlib.invalidate_caches()
    return name


SOURCE = "from fsa_cli import task\n@task\ndef work(): return 1\n"


def test_a_reloaded_module_replaces_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module(name := write_module(tmp_path, SOURCE))
    first = registry.get("work")

    write_module(tmp_path, "\n\n" + SOURCE.replace("return 1", "return 2"))
    importlib.reload(module)
    moved = registry.get("work")
    del sys.modules[name]
    importlib.import_module(name)

    assert first is not None
    assert moved is not None
    assert moved.function() == 2
    assert moved.line == first.line + 2
    assert registry.get("work") is not moved


def test_two_tasks_of_one_name_in_one_module_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(DuplicateTask):
        importlib.import_module(write_module(tmp_path, SOURCE + SOURCE))


@pytest.mark.parametrize("name", ["show", "retry", "", "a b", "a:b", "-a", "1a", "a/b", "x" * 191])
def test_a_name_that_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(TaskDefinitionError, match=r"has a name|cannot have this name"):
        task(name=name)(lambda: None)

    assert len(registry) == 0


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e15])
def test_a_time_out_that_never_or_always_comes_is_refused(timeout_s: float) -> None:
    with pytest.raises(TaskDefinitionError, match="timeout_s"):
        task(name="work", timeout_s=timeout_s)(lambda: None)


def test_a_generator_is_no_task() -> None:
    def rows() -> Iterator[int]:
        yield 1

    async def more_rows() -> Any:
        yield 1

    for function in (rows, more_rows):
        with pytest.raises(TaskDefinitionError, match="generator"):
            task(function)  # type: ignore[arg-type]


def test_task_of_something_else_says_how_to_write_it() -> None:
    with pytest.raises(TaskDefinitionError, match="not a function"):
        task("nightly")  # type: ignore[call-overload]


class Shop:
    def sync(self, n: int = 1) -> int:
        return n

    @classmethod
    def make(cls) -> None: ...

    def __call__(self, n: int) -> int:
        """Sync the shop."""
        return n


@dataclass
class Unhashable:
    def __call__(self) -> None: ...


@dataclass(frozen=True)
class Frozen:
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Shop().sync, "the bound method Shop.sync"),
        (Shop.make, "the bound method Shop.make"),
        (vars(Shop)["make"], "the classmethod Shop.make"),
        (Shop.sync, "Shop.sync, which takes 'self'"),
        (Shop, "the class Shop"),
        (len, "len, which is built in"),
        (Unhashable(), "cannot be hashed"),
        (Frozen(), "takes no attribute"),
        (3, "not a function"),
    ],
)
def test_what_cannot_be_a_task_is_a_type_error_that_names_it(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        task(name="made")(given)

    assert caught.value.hint  # type: ignore[attr-defined]
    assert len(registry) == 0


def test_partials_objects_and_static_methods_are_tasks() -> None:
    class Own:
        @task
        @staticmethod
        def outside(n: int) -> int:
            return n

        @staticmethod
        @task
        def inside(n: int) -> int:
            return n

    partial: Any = task(functools.partial(Shop.sync, Shop(), n=3))
    made: Any = task(name="shop")(Shop())

    assert [each.name for each in registry] == ["outside", "inside", "sync", "shop"]
    assert (Own.outside(2), Own.outside.task.function(3)) == (2, 3)  # type: ignore[attr-defined]
    assert partial() == 3
    assert made.task.summary == "Sync the shop."
    for each in registry:
        assert each.file == __file__
        assert each.line > 0
        assert signature_of(each.function).usage in ("N", "[--n INTEGER]")
    with pytest.raises(TaskDefinitionError, match="no name of its own"):
        task(Shop())


def test_what_hears_of_all_failures_is_a_function_and_is_there_once() -> None:
    def made(name: str) -> Callable[[Any], object]:
        def told(result: object) -> str:
            return name

        return told

    first, again, other = made("first"), made("again"), functools.partial(made("x"), "other")
    assert [on_failure(each) for each in (first, again, other)] == [first, again, other]
    assert registry.failure_hooks == (again, other), "as of a module that is imported twice"
    with pytest.raises(TaskDefinitionError, match="'mail', which is not a function"):
        on_failure("mail")  # type: ignore[type-var]


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="retrys"):
        task(retrys=3)(lambda: None)  # type: ignore[call-overload]


def test_importing_tasks_imports_none_of_the_tool() -> None:
    program = (
        "import sys\n"
        "from fsa_cli import task, TaskContext\n"
        "@task(schedule='0 3 * * *', timezone='Europe/Berlin')\n"
        "def work(context: TaskContext, n: int = 1): ...\n"
        "heavy = {'typer', 'rich', 'apscheduler', 'pydantic', 'sqlalchemy', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


MAIN = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    from fsa_cli import task

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://")

    @task(schedule="0 3 * * *", timezone="Europe/Berlin", timeout_s=60, tags=["nightly"])
    def count_users(active: bool = True, *, limit: int = 10) -> int:
        '''Count the users.

        Args:
            limit: Stop at so many.
        '''

    @task
    async def greet(name: str) -> str:
        '''Greet somebody.'''
"""


def test_fsa_tasks_lists_what_is_registered(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    write_app(tmp_path, main=MAIN)

    done = fsa("tasks")

    assert done.returncode == 0
    assert [line.split("\t") for line in done.stdout.splitlines()] == [
        ["task", "takes", "schedule", "what it does"],
        [
            "count_users",
            "[OPTIONS]",
            "0 3 * * *",
            "Count the users.",
        ],
        ["greet", "NAME", "", "Greet somebody."],
    ]


def test_fsa_tasks_as_json(fsa: Run, write_app: Callable[..., Path], tmp_path: Path) -> None:
    write_app(tmp_path, main=MAIN)

    listed = json.loads(fsa("tasks", "--json").stdout)
    one = json.loads(fsa("tasks", "count_users", "--json").stdout)

    assert [row["name"] for row in listed] == ["count_users", "greet"]
    assert one["timezone"] == "Europe/Berlin"
    assert one["next"].endswith(("T01:00:00Z", "T02:00:00Z"))
    assert one["parameters"][1] == {
        "name": "limit",
        "kind": "option",
        "type": "INTEGER",
        "required": False,
        "repeatable": False,
        "default": 10,
        "choices": None,
        "help": "Stop at so many.",
    }
    assert listed[0] | {"next": None} == one | {"next": None}


def test_fsa_tasks_name_shows_one_in_full(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    write_app(tmp_path, main=MAIN)

    done = fsa("tasks", "count_users")

    assert done.returncode == 0
    first, *_ = done.stdout.splitlines()
    assert first == "fsa run-task count_users [--active/--no-active] [--limit INTEGER]"
    assert "main.py:9" in done.stdout
    assert "Stop at so many. (default: 10)" in done.stdout
    assert "0 3 * * * (Europe/Berlin)" in done.stdout
    assert done.stdout.count("limit: Stop") == 0


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("0 3 * * *", "5/15 * * * *", 'minute "5/15" has a step'),
        ("0 3 * * *", "3:00", 'cron text has five; write "0 3 * * *"'),
        ("Europe/Berlin", "Europe/Berlim", "; did you mean Europe/Berlin"),
    ],
)
def test_a_wrong_schedule_is_said_with_its_cure_and_hides_nothing_else(
    before: str, after: str, said: str, fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    write_app(tmp_path, main=MAIN.replace(before, after))

    done = fsa("tasks")

    assert done.returncode == 0
    assert "greet" in done.stdout
    assert "warning: count_users (main.py:9): " in done.stderr
    assert said in done.stderr


def test_no_task_is_said(fsa: Run, write_app: Callable[..., Path], tmp_path: Path) -> None:
    write_app(tmp_path, main=MAIN.split("@task")[0])

    done = fsa("tasks")

    assert done.returncode == 0
    assert "no task is registered" in done.stderr
    assert "tasks.py beside its module (shop/tasks.py for shop/main.py)" in done.stderr
    assert 'tasks = ["shop.jobs"]' in fsa("run-task", "ship").stderr


def test_the_context_is_importable_for_annotations() -> None:
    assert TaskContext.__module__ == "fsa_cli.tasks.task_context"

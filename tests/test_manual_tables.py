"""The manual's tables against the code: every argument, key, status, exit code and command."""

import itertools
import re
import typing
from collections.abc import Iterator
from inspect import Parameter, signature
from types import SimpleNamespace

import pytest

import fsa_cli.api
from fsa_cli import TaskContext, exceptions
from fsa_cli.cli.command_tree import COMMANDS, _load
from fsa_cli.cli.flags import COMMON
from fsa_cli.ledger.records import RunStatus, status_word
from fsa_cli.project import environments
from fsa_cli.project.settings import KEYS
from fsa_cli.runner.run import RunResult
from fsa_cli.tasks import definition
from fsa_cli.terminal import manual
from support.manual import blocks, table, text_of

SPELLED = {
    "Overlap": definition.Overlap,
    "CatchUp": definition.CatchUp,
    "OnCrash": definition.OnCrash,
    "Isolation | None": definition.Isolation,
}


def named(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_argument_of_task_is_in_its_table_with_type_and_default() -> None:
    where = fsa_cli.api.TaskDecorator
    named_so = SimpleNamespace(
        __module__=where.__module__, __qualname__=f"{where.__qualname__}.__call__"
    )
    options = typing.get_overloads(typing.cast(typing.Any, named_so))[-1]
    _, *given = signature(options).parameters.items()
    parameters = dict(given)
    rows = {named(row[0])[0]: row for row in table("tasks", under="Every argument of `@task`")}
    assert list(rows) == list(parameters)
    for name, parameter in parameters.items():
        _, type_, default, _ = rows[name]
        assert parameter.kind is Parameter.KEYWORD_ONLY
        assert named(default) == [repr(parameter.default).replace("'", '"')], name
        if choices := SPELLED.get(parameter.annotation):
            said = [f'"{each}"' for each in typing.get_args(choices)]
            assert [each for each in named(type_) if each != "None"] == said, name
        elif name != "on_failure":
            assert named(type_) == [parameter.annotation], name


def test_what_a_task_learns_of_its_run_is_in_its_tables() -> None:
    text = text_of("tasks")
    for kind in (TaskContext, RunResult):
        fields = {name for name in kind.__dataclass_fields__ if not name.startswith("_")}
        fields |= {name for name in vars(kind) if not name.startswith("_")}
        fields -= {"succeeded"}
        for name in fields:
            assert re.search(rf"^\|[^|]*`{name}[`(]", text, re.MULTILINE), (kind, name)


def test_every_key_is_in_its_table_with_its_variable() -> None:
    rows = {named(row[0])[0]: row for row in table("settings", under="`[tool.fsa]`")}
    assert list(rows) == list(KEYS)
    for key, kind in KEYS.items():
        if kind is not dict:
            assert named(rows[key][1]) == [f"FSA_{key.upper()}"]


def test_every_key_of_an_environment_is_shown() -> None:
    (block,) = [b for b in blocks("environments") if b.language == "toml"]
    keys = re.findall(r"^(\w+) = ", block.text, re.MULTILINE)
    assert tuple(keys) == environments._KEYS


def test_every_status_is_in_its_table() -> None:
    assert [named(row[0])[0] for row in table("runs", under="Statuses")] == [
        *map(status_word, RunStatus)
    ]


def test_every_exit_code_is_in_its_table() -> None:
    def codes(kind: type[exceptions.FsaError]) -> Iterator[int]:
        yield kind.exit_code
        for each in kind.__subclasses__():
            yield from codes(each)

    shown = [int(row[0]) for row in table("commands", under="Exit codes")]
    assert shown == sorted({0, 141, *codes(exceptions.FsaError)})


def test_every_page_that_an_error_names_is_there() -> None:
    def named_pages(kind: type[exceptions.FsaError]) -> Iterator[str]:
        yield from filter(None, [kind.page])
        for each in kind.__subclasses__():
            yield from named_pages(each)

    assert set(named_pages(exceptions.FsaError)) <= {page.name for page in manual.pages()}


def test_every_common_option_is_in_its_table() -> None:
    shown = [each for row in table("commands", under="Common options") for each in named(row[0])]
    assert shown == [*itertools.chain(*COMMON.values()), "-V", "--version"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_its_table(name: str) -> None:
    shown = [re.split(r" (?=[A-Z\[])", named(row[0])[0])[0] for row in table("commands")]

    def paths(path: str, command: object) -> Iterator[str]:
        yield path
        for below, each in getattr(command, "commands", {}).items():
            yield from paths(f"{path} {below}", each)

    expected = list(paths(name, _load(name)))
    assert [path for path in shown if path.split()[0] == name] == expected


def test_the_list_of_pages_fits_a_terminal_of_eighty_columns() -> None:
    for page in manual.pages():
        assert len(page.summary) <= 60, page.name


def test_every_link_leads_to_a_page() -> None:
    known = {page.name: page for page in manual.pages()} | dict.fromkeys(manual.ORDER)
    for page in manual.pages():
        for name, anchor in re.findall(r"\]\(([\w-]+)\.md(?:#([\w-]+))?\)", page.text):
            assert name in known, (page.name, name)
            target = known[name]
            if anchor and target is not None:
                headings = re.findall(r"^#+ (.*)$", target.text, re.MULTILINE)
                anchors = [
                    re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings
                ]
                assert anchor in anchors, (page.name, name, anchor)

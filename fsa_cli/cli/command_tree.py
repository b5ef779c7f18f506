"""The commands, each imported when it is called, and their help."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Mapping, Sequence
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import DefaultPlaceholder

from fsa_cli.cli.common_options import fsa
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.exceptions import FsaError, UsageError
from fsa_cli.project import environments
from fsa_cli.tasks.callables import is_async

if TYPE_CHECKING:
    from fsa_cli.project.plugins import UserCommand
    from fsa_cli.project.settings import Settings

__all__ = ["COMMANDS", "USUAL", "command", "command_path"]

#: Each command: the module and attribute of its function or Typer app, and its line in the help.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "status": ("fsa_cli.commands.status:app", "One look: what is alive, wrong, running, next."),
    "run-task": ("fsa_cli.commands.run_task:app", "Run one task now, here, in its own session."),
    "tasks": ("fsa_cli.commands.tasks:app", "The registered tasks; one task in full."),
    "runs": ("fsa_cli.commands.runs:app", "What ran: status, duration, error or result."),
    "shell": ("fsa_cli.commands.shell:app", "An interactive session: app, db, session, models."),
    "scheduler": ("fsa_cli.commands.scheduler:app", "Host the schedule, or look at it."),
    "worker": ("fsa_cli.commands.worker:app", "Execute the runs that were enqueued or dispatched."),
    "console": ("fsa_cli.commands.console:console", "The console: the runs in a browser, here."),
    "top": ("fsa_cli.commands.top:top", "What runs, waits and has failed, on this terminal."),
    "dev": ("fsa_cli.commands.dev:app", "The app, schedule and worker in one terminal, reloading."),
    "health": ("fsa_cli.commands.health:app", "Is it well? With exit codes for probes."),
    "db": ("fsa_cli.commands.db:app", "The database: tables, SQL, schema, migrations."),
    "routes": ("fsa_cli.commands.routes:app", "The app's routes, and where each is written."),
    "config": ("fsa_cli.commands.config:app", "Every setting, and where it came from."),
    "doctor": ("fsa_cli.commands.doctor:app", "One page for a bug report."),
    "init": ("fsa_cli.commands.init:app", "Write what a project needs; overwrites nothing."),
    "docs": ("fsa_cli.commands.docs:app", "The manual of this version; a search in it."),
}
#: What other tools call a command of ours.
USUAL = {
    "help": "fsa --help, fsa docs",
    "man": "fsa docs",
    "manual": "fsa docs",
    "start": "fsa dev, fsa scheduler start, fsa worker start",
    "serve": "fsa dev",
    "list": "fsa tasks, fsa runs",
    "check": "fsa health, fsa db check",
    "db migrate": "fsa db upgrade",
    "db init": 'fsa db revision --autogenerate -m "first" begins the migrations',
    "scheduler run": "fsa scheduler start, fsa scheduler trigger NAME",
    "scheduler stop": "Ctrl-C or SIGTERM ends the process; fsa scheduler pause --all",
    **dict.fromkeys(("runs list", "runs ls"), "fsa runs"),
    **dict.fromkeys(("runs logs", "runs log"), "fsa runs show last"),
    **dict.fromkeys(
        ("runs delete", "runs prune", "runs clean", "runs clear", "runs purge"),
        "[tool.fsa] keep says how long runs are kept",
    ),
    **dict.fromkeys(("runs stop", "runs kill"), "fsa runs cancel ID"),
    "worker run": "fsa worker start",
    "worker stop": "Ctrl-C or SIGTERM ends the process",
    "db tables": "fsa db show",
    "db sql": "fsa db query",
    "db schema": "fsa db table NAME, fsa db check",
    "db reset": "fsa db downgrade base, fsa db upgrade",
    "db drop": "fsa db downgrade base",
    "migrate": "fsa db upgrade",
    "makemigrations": "fsa db revision --autogenerate",
    "upgrade": "fsa db upgrade",
    "dbshell": "fsa db shell",
    "logs": "fsa runs, fsa runs show last",
    "log": "fsa runs, fsa runs show last",
    "history": "fsa runs",
    "jobs": "fsa runs, fsa tasks",
    "queue": "fsa runs --status queued",
    "ps": "fsa status, fsa runs --status running",
    "beat": "fsa scheduler start",
    "cron": "fsa scheduler list",
    "schedule": "fsa scheduler list",
    "exec": "fsa run-task NAME",
    "run": "fsa run-task NAME",
    "call": "fsa run-task NAME",
    "test": "fsa run-task NAME --dry-run",
    "version": "fsa --version",
}
_HELP = "Common options, before or after the command, or as variables"
_VARIABLE = re.compile(r"(?<! ) *\[env var: (\w+)(?:; )?([^\]]*)\]")


class _Help:
    """The help of a command: no more than a screen of 80 columns and 24 lines."""

    def format_usage(self: Any, ctx: Any, formatter: Any) -> None:
        pieces = [each.strip("{}") for each in self.collect_usage_pieces(ctx)]
        formatter.write_usage(command_path(ctx), " ".join(pieces))

    def get_short_help_str(self: Any, limit: int = 45) -> str:
        return _sentence_within(self.help or "", limit)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _make_headings_bold(ctx, formatter)
        super().format_help(ctx, formatter)  # type: ignore[misc]


class FsaCommand(_Help, TyperCommand):
    """A command whose help lists the common options apart from its own."""

    def invoke(self, ctx: Any) -> Any:
        fsa: Fsa = ctx.obj
        fsa.command = command_path(ctx).partition(" ")[2]
        own: UserCommand | None = ctx.find_root().command.own
        if own is not None:
            environments.of(fsa.settings).refuse_prohibited(fsa.command)
            if not own.is_plugin:
                fsa.load()  # so that `db` is the app's, and the environment is known
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _format_options(self, ctx, formatter)


class FsaGroup(_Help, TyperGroup):
    """A group whose commands are imported when they are called.

    `commands` holds stand-ins with a name and a line of help, enough for `--help` and for a
    did-you-mean; `resolve_command` puts the real one in the place of the one that is called.
    """

    own: UserCommand | None = None
    """The user's own command that is called."""
    brief = False
    """Whether its help is no more than its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Click does, but a command is not taken for the group's argument, as in `runs show`."""
        every = self.params
        without = [each for each in every if each.param_type_name != "argument"]
        if len(without) < len(every) and not ctx.resilient_parsing:
            self.params = without
            try:
                _, argv, _ = self.make_parser(ctx).parse_args(args=list(args))
                if argv and argv[0] in self.commands:
                    return super().parse_args(ctx, args)
            finally:
                self.params = every
            ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and ctx.parent is None:
            name = args[0]
            completing = ctx.obj is None
            fsa = ctx.obj or Fsa()
            if name not in self.commands:
                self.add_own(fsa, complain=not completing)
            stand_in = self.commands.get(name)
            if isinstance(stand_in, _StandIn):
                self.own = stand_in.own
                with contextlib.suppress(FsaError) if completing else contextlib.nullcontext():
                    self.commands[name] = _load(name, stand_in, fsa, self.params)
        if args and args[0] not in self.commands and ctx.obj is not None:
            whole = f"{command_path(ctx)} {args[0]}".partition(" ")[2]
            if whole in USUAL:
                raise UsageError(f"fsa has no command {whole!r}", hint=USUAL[whole])
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        if ctx.parent is None:
            self.add_own(Fsa())
        completions: list[Any] = super().shell_complete(ctx, incomplete)
        return completions

    def add_own(self, fsa: Fsa, *, complain: bool = False) -> None:
        """Add stand-ins for the user's own commands, without those that are named wrongly.

        Args:
            complain: Warn of those, and raise if the settings cannot be read.
        """
        from fsa_cli.project import plugins

        settings: Settings | None = None
        try:
            settings = fsa.settings
        except FsaError:  # `--help` works with a broken pyproject.toml
            if complain:
                raise
        warn = fsa.output.warn if complain else fsa.output.detail
        for found in plugins.find_commands(settings, warn):
            if found.name not in self.commands:
                stand_in = _StandIn(
                    found.name, help=plugins.summary(found, settings), rich_markup_mode=None
                )
                stand_in.own = found
                self.add_command(stand_in)

    def invoke(self, ctx: Any) -> Any:
        ctx.obj.command = command_path(ctx).partition(" ")[2]
        gc.freeze()  # what is imported stays
        gc.enable()
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        if ctx.parent is None:
            self.add_own(ctx.obj)
        self.format_commands(ctx, formatter)
        if self.brief:
            formatter.write_paragraph()
            formatter.write_text(
                "fsa -h: examples and the common options. fsa COMMAND -h: its own."
            )
        else:
            _format_options(self, ctx, formatter)


class _StandIn(_Help, TyperCommand):
    """A command that has not been imported."""

    own: UserCommand | None = None


def command(*, brief: bool = False) -> FsaGroup:
    """The whole command line, as Click sees it.

    Args:
        brief: Its help fits 24 lines: for who types `fsa` alone.
    """
    root = typer.Typer(
        name="fsa",
        cls=FsaGroup,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    root.callback()(fsa)
    group = typer.main.get_command(root)
    assert isinstance(group, FsaGroup)
    for name, (_, line) in COMMANDS.items():
        group.add_command(_StandIn(name, help=line, rich_markup_mode=None))
    if brief:
        group.brief = True
        group.help = (group.help or "").partition("\n\n")[0]
    return group


def _load(
    name: str, stand_in: _StandIn | None = None, fsa: Fsa | None = None, of_root: Sequence[Any] = ()
) -> Any:
    """A command, which has the common options, of those of the root, as its own."""
    own = stand_in.own if stand_in else None
    if own is not None and fsa is not None:
        from fsa_cli.project import plugins

        found: Any = plugins.load(own, fsa.settings)
    else:
        module, _, attribute = COMMANDS[name][0].partition(":")
        found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        found, function = typer.Typer(), found
        found.command()(function)
    found.rich_markup_mode = None
    found._add_completion = False
    if isinstance(found.info.cls, DefaultPlaceholder):
        found.info.cls = FsaGroup
    for info in found.registered_commands:
        if is_async(info.callback):  # Typer would drop the coroutine, and exit with 0
            info.callback = _run_to_its_end(info.callback)
        if info.cls in (None, TyperCommand):
            info.cls = FsaCommand
    loaded = typer.main.get_command(found)
    loaded.name = name
    for each in (loaded, *getattr(loaded, "commands", {}).values()):
        taken = {word for param in each.params for word in (param.name, *param.opts)}
        each.params.extend(
            p for p in of_root if _is_common(p) and taken.isdisjoint((p.name, *p.opts))
        )
    return loaded


def _is_common(param: Any) -> bool:
    return param.name in fsa.__annotations__


def _run_to_its_end(function: Any) -> Any:
    import asyncio  # only for those who need it: `fsa --help` would pay

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return run


def command_path(ctx: Any) -> str:
    """As `fsa runs cancel`; Click's own path of it is `fsa runs [NAME] cancel`."""
    return (
        f"{command_path(ctx.parent)} {ctx.info_name}"
        if ctx.parent is not None
        else str(ctx.info_name)
    )


def _make_headings_bold(ctx: Any, formatter: Any) -> None:
    """On a terminal that shows it."""
    fsa: Fsa = ctx.obj or Fsa()
    if fsa.output.shows_color:
        formatter.write_heading = lambda heading: formatter.write(f"\x1b[1m{heading}:\x1b[0m\n")


def _sentence_within(text: str, limit: int) -> str:
    """The first sentence of a help; the part of it that stands alone, where it is longer."""
    first = " ".join(text.partition("\n\n")[0].split())
    sentence = f"{first} ".partition(". ")[0].rstrip(". ")
    for mark in (";", ":"):
        if len(sentence) >= limit:
            sentence = sentence.partition(mark)[0]
    while len(sentence) >= limit:
        sentence = sentence.rpartition("," if "," in sentence else " ")[0]
    return sentence if first == sentence else f"{sentence}."


def _format_options(command: Any, ctx: Any, formatter: Any) -> None:
    common = {*fsa.__annotations__, "help", "install_completion", "show_completion"}
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], _HELP: []}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue
        if param.param_type_name == "argument":
            name = record[0].removesuffix(" <list[str]>").removesuffix(" <str>")
            sections["Arguments"].append((name, record[1].removesuffix("  [required]")))
        else:
            ours = param.name in common and not param.expose_value  # a user's -v is the user's
            if ours and ctx.parent is None:
                record = (record[0], record[1].replace("[env var: ", "["))
            sections[_HELP if ours else "Options"].append(record)
    hidden = sections.pop(_HELP) if ctx.parent is not None else []
    if hidden:  # what every option has stands in one line
        sections["Options"] = [(name, _brief(text)) for name, text in sections["Options"]]
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)
    if hidden:
        formatter.write_paragraph()
        formatter.write_text(f"Common options: fsa -h.{_variable(command)}")


def _variable(command: Any) -> str:
    """How the variables of its options are called, by one of them."""
    for param in command.params:
        if param.param_type_name == "option" and param.expose_value and param.envvar:
            return f" Options are variables too: {param.envvar}"
    return ""


def _brief(text: str) -> str:
    """The help of an option, without its variable and the bounds of its number."""

    def kept(match: re.Match[str]) -> str:
        rest = [part for part in match[2].split("; ") if part and "x" not in part]
        return f"  [{'; '.join(rest)}]" if rest else ""

    return _VARIABLE.sub(kept, text)

"""Alembic, with the app's URL and its models: with an alembic.ini, or without one."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from fsa_cli.database.models import metadata_of
from fsa_cli.database.next_step import next_step, refuses, schema_is_missing
from fsa_cli.exceptions import (
    ConfigurationError,
    DatabaseUnreachable,
    FsaError,
    MigrationFailed,
    UsageError,
)
from fsa_cli.migrations.scripts import Scripts, find, require_alembic
from fsa_cli.migrations.state import Revision, State, Step, change_of, revision_of, step_of
from fsa_cli.project.loader import LoadedApp
from fsa_cli.project.settings import Settings
from fsa_cli.terminal.user_code import relative_path, summarize_error, user_frame

if TYPE_CHECKING:
    from fsa_cli.migrations.environment import AlembicCall

T = TypeVar("T")

__all__ = ["Migrations", "Revision", "State", "Step", "is_at_head"]


def is_at_head(loaded: LoadedApp, settings: Settings) -> State | None:
    """The state of the database whose migrations the settings name; None if there are none.

    Raises:
        MigrationFailed: It cannot be determined.
    """
    if not find(settings).exist:
        return None
    return Migrations(loaded, settings).state()


class Migrations:
    """The migrations of one database of the app.

    Raises:
        ConfigurationError: Alembic is not installed.
    """

    def __init__(
        self,
        loaded: LoadedApp,
        settings: Settings,
        *,
        x: Sequence[str] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """*x* is what `alembic -x` takes; *say* is told what it waits for."""
        require_alembic()
        self.loaded = loaded
        self.settings = settings
        self.database = loaded.database(settings.database)
        self.scripts: Scripts = find(settings)
        self._x = x
        self._say = say
        self._compares = False

    def upgrade(
        self,
        revision: str = "head",
        *,
        tell: Callable[[Step], None],
        lock_timeout_s: float | None = None,
    ) -> None:
        """Apply the missing migrations, up to *revision*; *tell* is called with each.

        Args:
            lock_timeout_s: How long a statement waits for a lock before it gives up, to be tried
                again a little later; None: for as long as it takes.
        """
        from alembic import command

        self._migrate(lambda config: command.upgrade(config, revision), tell, lock_timeout_s)

    def downgrade(
        self, revision: str, *, tell: Callable[[Step], None], lock_timeout_s: float | None = None
    ) -> None:
        """Take migrations back, down to *revision*: `-1`, `base`, or one's id."""
        from alembic import command

        self._migrate(lambda config: command.downgrade(config, revision), tell, lock_timeout_s)

    def stamp(self, revision: str, *, purge: bool = False, tell: Callable[[Step], None]) -> None:
        """Note that the database is at *revision*, without migrating it."""
        from alembic import command

        self._migrate(lambda config: command.stamp(config, revision, purge=purge), tell)

    def merge(self, message: str | None) -> Revision:
        """Write a migration that joins all heads.

        Raises:
            UsageError: There is one head, or none.
        """
        from alembic import command

        self._need_scripts()
        heads = [each.revision for each in self.history() if each.is_head]
        if len(heads) < 2:
            raise UsageError(
                "there is nothing to merge",
                details=[f"the head is {heads[0]}" if heads else "there are no migrations"],
            )
        made = self._run(lambda config: command.merge(config, heads, message=message))
        return revision_of(made)

    def taken_back(self, revision: str) -> list[Revision]:
        """What a downgrade to *revision* takes back, in its order; empty if it cannot be told."""
        from alembic.util.exc import CommandError

        def look(current: tuple[str, ...], script: Any) -> list[Revision]:
            try:
                steps = list(script._downgrade_revs(revision, current))
            except CommandError:  # the downgrade itself says why
                return []
            return [revision_of(each.revision) for each in steps]

        return self._look(look)

    def sql(self, revision: str, *, down: bool = False) -> str:
        """The SQL of an upgrade (or downgrade), all of it or none. Nothing connects."""
        from alembic import command

        self._need_scripts()
        migrate = command.downgrade if down else command.upgrade
        output = io.StringIO()
        self._run(lambda config: migrate(config, revision, sql=True), output)
        return output.getvalue()

    def revision(
        self, message: str | None, *, autogenerate: bool = False, baseline: bool = False
    ) -> tuple[Revision | None, list[str]]:
        """Write a new migration script. Returns it, and the changes that were found for it.

        None if nothing has changed: then nothing is written.

        Args:
            autogenerate: Fill it with what makes the database what the models are.
            baseline: Fill it with what makes an empty database what the models are: the first one
                of a database that has its tables already.

        Raises:
            SchemaBehind: Changes cannot be found against a database that is not at head.
            UsageError: It would be the baseline of a project that has migrations.
        """
        from alembic import command

        from fsa_cli.migrations.comparison import unwarned

        changes: list[str] = []

        def keep_what_changes(context: Any, revision: Any, directives: list[Any]) -> None:
            changes.extend(map(change_of, directives[0].upgrade_ops.as_diffs()))
            if not changes:
                directives.clear()

        if baseline and (earlier := self.begun()):
            raise UsageError(
                "a baseline is the first migration, and there are migrations",
                details=[f"the newest is {earlier[0].revision}"],
                hint="fsa db revision --autogenerate writes what the models changed since",
            )
        autogenerate = autogenerate or baseline
        if autogenerate and self.scripts.exist and not (state := self.state()).at_head:
            raise state.behind()
        self._compares = autogenerate
        with contextlib.nullcontext() if self.scripts.has_environment else unwarned():
            made = self._run(
                lambda config: command.revision(
                    config,
                    message,
                    autogenerate=autogenerate,
                    process_revision_directives=keep_what_changes if autogenerate else None,
                ),
                as_if_empty=baseline,
            )
        return revision_of(made) if made and not isinstance(made, list) else None, changes

    def ledger_revision(self, message: str | None) -> Revision:
        """Write a migration that creates the tables of the ledger of runs, or adds what they lack.

        Taken back it drops them, unless a migration before it has created them: what a version adds
        does not disturb the one before.
        """
        from alembic.script import ScriptDirectory
        from alembic.util import rev_id

        name = "upgrade_ledger"
        is_first = not any(name in Path(each.file).read_text("utf-8") for each in self.begun())

        def write(config: Any) -> Any:
            return ScriptDirectory.from_config(config).generate_revision(
                rev_id(),
                message or "the ledger of fsa",
                refresh=True,
                config=config,
                imports=f"from fsa_cli import {'downgrade_ledger, ' if is_first else ''}{name}",
                upgrades=f"{name}(op)",
                downgrades="downgrade_ledger(op)" if is_first else "pass",
            )

        return revision_of(self._run(write))

    def begun(self) -> list[Revision]:
        """Every migration script, the newest first; none where there is no folder of them."""
        return self.history() if self.scripts.exist else []

    def state(self) -> State:
        """The state of the database."""
        return self._look(_state)

    def history(self) -> list[Revision]:
        """Every migration script, the newest first. It connects only for scripts that need it."""
        from alembic.script import ScriptDirectory

        self._need_scripts()
        with contextlib.suppress(Exception):  # of a script that uses `op` when it is read
            return _every(ScriptDirectory.from_config(self.scripts.config({}, x=self._x)))
        try:
            return self._look(lambda current, script: _every(script))
        except (MigrationFailed, DatabaseUnreachable, SQLAlchemyError):
            from fsa_cli.migrations.environment import offline

            with self._translated(looking=True), offline(self.database):
                return _every(ScriptDirectory.from_config(self.scripts.config({}, x=self._x)))

    def _look(self, work: Callable[[tuple[str, ...], Any], T]) -> T:
        self._need_scripts()
        call = self._call()
        with self._translated(looking=True):
            value: T = call.run(lambda config: call.look(config, work))
            return value

    def _migrate(
        self,
        work: Callable[[Any], Any],
        tell: Callable[[Step], None],
        lock_timeout_s: float | None = None,
    ) -> None:
        self._need_scripts()
        from fsa_cli.migrations.exclusive import LockTimeout, alone

        call = self._call()
        call.on_step = lambda info: tell(step_of(info))
        with (
            self._translated(),
            alone(
                self.database,
                lambda: self._say("another process migrates this database: waiting for its end"),
            ),
        ):
            if lock_timeout_s is None:
                call.run(work)
            else:
                call.lock_timeout = LockTimeout(lock_timeout_s, self._say)
                call.lock_timeout.repeat(lambda: call.run(work))

    def _run(
        self, work: Callable[[Any], Any], output: Any = None, *, as_if_empty: bool = False
    ) -> Any:
        call = self._call(output)
        call.as_if_empty = as_if_empty
        with self._translated():
            return call.run(work)

    def _call(self, output: Any = None) -> AlembicCall:
        from fsa_cli.migrations.environment import AlembicCall

        self._refuse_several()
        return AlembicCall(self.scripts, self.database, self._metadata, output=output, x=self._x)

    def _metadata(self) -> list[Any] | None:
        """The models; None where there are none and nothing is compared with them."""
        try:
            return metadata_of(self.settings.metadata, self.settings.sources["metadata"])
        except ConfigurationError:
            if self._compares or self.settings.metadata is not None:
                raise
            return None

    def _refuse_several(self) -> None:
        if self.scripts.several and not self.scripts.exist:
            each = [relative_path(str(file)) for file in self.scripts.several]
            raise UsageError(
                f"which migrations? There are {len(each)} alembic.ini below this project",
                details=each,
                hint=f"ALEMBIC_CONFIG={quote(each[0])} names one",
            )

    def _need_scripts(self) -> None:
        self._refuse_several()
        if not self.scripts.exist:
            raise UsageError(
                "this project has no migrations",
                details=[f"there is no alembic.ini, no [tool.alembic], no {self.scripts.folder}"],
                hint='fsa db revision --autogenerate -m "first" begins them; where the tables are '
                "there already, --baseline instead of --autogenerate",
            )

    @contextlib.contextmanager
    def _translated(self, *, looking: bool = False) -> Iterator[None]:
        """Raise errors as the user's own: their migration, their env.py."""
        from alembic.script.revision import ResolutionError
        from alembic.util.exc import CommandError

        try:
            yield
        except FsaError:
            raise
        except ResolutionError as exc:
            raise MigrationFailed(
                f"the database is at revision {exc.argument}, which these migrations do not have",
                hint=_BEHIND,
            ) from exc
        except CommandError as exc:
            raise MigrationFailed(f"Alembic: {exc}", hint=_hint_of_alembic(exc, looking)) from exc
        except Exception as exc:
            where = user_frame(exc)
            if self.loaded.unreachable(exc) is not None:
                raise
            summary = summarize_error(getattr(exc, "orig", None) or exc)
            failed = "the migrations cannot be read" if looking else "the migration failed"
            raise MigrationFailed(
                f"{failed}: {summary}",
                details=where.lines() if where else [],
                hint=_hint(exc, looking),
            ) from exc


_LISTED = "fsa db history lists the revisions; fsa db current says where the database is"
_BEHIND = (
    "a newer release or another branch has migrated it: run that one, or take back with it what "
    "this one does not know (fsa db downgrade)"
)


def _state(current: tuple[str, ...], script: Any) -> State:
    # In the order of an upgrade: the base first.
    missing = script.iterate_revisions("heads", current or "base", implicit_base=True)
    applied = set(current)
    pending = [revision_of(each) for each in missing if each.revision not in applied]
    return State(current, tuple(script.get_heads()), tuple(reversed(pending)))


def _every(script: Any) -> list[Revision]:
    return [revision_of(each) for each in script.walk_revisions()]


def _hint_of_alembic(error: Exception, looking: bool) -> str | None:
    text = str(error)
    if "ultiple head" in text:
        return "fsa db upgrade heads applies them all; fsa db merge joins them into one"
    if "Can't locate revision" in text:
        return _BEHIND if looking else _LISTED
    return None if looking else _LISTED


def _hint(error: Exception, looking: bool) -> str:
    from fsa_cli.migrations.exclusive import lock_was_not_free

    text = str(error)
    if 'near "ALTER"' in text or "ALTER of constraints in SQLite" in text:
        return (
            "SQLite alters a table in batch mode only: with op.batch_alter_table(TABLE) as batch,"
            " and render_as_batch=True in env.py for those that are generated"
        )
    if lock_was_not_free(error):
        return "try when less is going on, or give it longer: --lock-timeout 10s"
    if refuses(error) or schema_is_missing(error):
        return next_step(error) or ""
    if isinstance(error, NameError) and error.name:
        return f"the migration has no import of {error.name}: write it at its top"
    if looking:
        return "--traceback shows more"
    return "fsa db current says where the schema stands; --traceback shows more"

"""Alembic, with the app's URL and its models: with an alembic.ini, or without one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fsa_cli.database.models import metadata_of
from fsa_cli.exceptions import FsaError, MigrationFailed, UsageError
from fsa_cli.migrations.scripts import Scripts, find, require_alembic
from fsa_cli.migrations.state import Revision, State, Step, change_of, revision_of, step_of
from fsa_cli.project.loader import LoadedApp
from fsa_cli.project.settings import Settings
from fsa_cli.terminal.user_code import summarize_error, user_frame

if TYPE_CHECKING:
    from fsa_cli.migrations.environment import AlembicCall

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

    def __init__(self, loaded: LoadedApp, settings: Settings) -> None:
        require_alembic()
        self.loaded = loaded
        self.settings = settings
        self.database = loaded.database(settings.database)
        self.scripts: Scripts = find(settings)

    def upgrade(self, revision: str = "head", *, tell: Callable[[Step], None]) -> None:
        """Apply the missing migrations, up to *revision*; *tell* is called with each."""
        from alembic import command

        self._need_scripts()
        self._run(lambda config: command.upgrade(config, revision), tell)

    def downgrade(self, revision: str, *, tell: Callable[[Step], None]) -> None:
        """Take migrations back, down to *revision*: `-1`, `base`, or one's id."""
        from alembic import command

        self._need_scripts()
        self._run(lambda config: command.downgrade(config, revision), tell)

    def stamp(self, revision: str, *, purge: bool = False, tell: Callable[[Step], None]) -> None:
        """Note that the database is at *revision*, without migrating it."""
        from alembic import command

        self._need_scripts()
        self._run(lambda config: command.stamp(config, revision, purge=purge), tell)

    def sql(self, revision: str, output: Any, *, down: bool = False) -> None:
        """Write the SQL of an upgrade (or downgrade) to *output*. Nothing connects."""
        from alembic import command

        self._need_scripts()
        migrate = command.downgrade if down else command.upgrade
        self._run(lambda config: migrate(config, revision, sql=True), output=output)

    def revision(
        self, message: str | None, *, autogenerate: bool = False
    ) -> tuple[Revision | None, list[str]]:
        """Write a new migration script. Returns it, and the changes that were found for it.

        None if nothing has changed: then nothing is written.

        Raises:
            SchemaBehind: Changes cannot be found against a database that is not at head.
        """
        from alembic import command

        changes: list[str] = []

        def keep_what_changes(context: Any, revision: Any, directives: list[Any]) -> None:
            changes.extend(map(change_of, directives[0].upgrade_ops.as_diffs()))
            if not changes:
                directives.clear()

        if autogenerate and self.scripts.exist and not (state := self.state()).at_head:
            raise state.behind()
        made = self._run(
            lambda config: command.revision(
                config,
                message,
                autogenerate=autogenerate,
                process_revision_directives=keep_what_changes if autogenerate else None,
            )
        )
        return revision_of(made) if made and not isinstance(made, list) else None, changes

    def state(self) -> State:
        """The state of the database."""
        self._need_scripts()

        def look(call: AlembicCall, config: Any) -> State:
            current, script = call.look(config)
            # In the order of an upgrade: the base first.
            missing = script.iterate_revisions("heads", current or "base", implicit_base=True)
            applied = set(current)
            pending = [revision_of(each) for each in missing if each.revision not in applied]
            return State(current, tuple(script.get_heads()), tuple(reversed(pending)))

        state: State = self._run_call(look)
        return state

    def history(self) -> list[Revision]:
        """Every migration script, the newest first. Nothing connects."""
        from alembic.script import ScriptDirectory

        self._need_scripts()
        with self._translated():
            script = ScriptDirectory.from_config(self.scripts.config({}))
            return [revision_of(each) for each in script.walk_revisions()]

    def _run(
        self,
        work: Callable[[Any], Any],
        tell: Callable[[Step], None] | None = None,
        output: Any = None,
    ) -> Any:
        return self._run_call(lambda call, config: work(config), tell, output)

    def _run_call(
        self,
        work: Callable[[AlembicCall, Any], Any],
        tell: Callable[[Step], None] | None = None,
        output: Any = None,
    ) -> Any:
        from fsa_cli.migrations.environment import AlembicCall

        call = AlembicCall(self.scripts, self.database, self._metadata, output=output)
        if tell is not None:
            call.on_step = lambda info: tell(step_of(info))
        with self._translated():
            return call.run(lambda config: work(call, config))

    def _metadata(self) -> list[Any]:
        return metadata_of(self.settings.metadata, self.settings.sources["metadata"])

    def _need_scripts(self) -> None:
        if not self.scripts.exist:
            raise UsageError(
                "this project has no migrations",
                details=[f"there is no alembic.ini, no [tool.alembic], no {self.scripts.folder}"],
                hint='fsa db revision --autogenerate -m "first" begins them',
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise errors as the user's own: their migration, their env.py."""
        from alembic.util.exc import CommandError

        try:
            yield
        except FsaError:
            raise
        except CommandError as exc:
            raise MigrationFailed(f"Alembic: {exc}", hint="fsa db history") from exc
        except Exception as exc:
            where = user_frame(exc)
            if self.loaded.unreachable(exc) is not None:
                raise
            raise MigrationFailed(
                f"the migration failed: {summarize_error(getattr(exc, 'orig', None) or exc)}",
                details=where.lines() if where else [],
                hint="fsa db current says where the schema stands; --traceback shows more",
            ) from exc

"""Migrations, and the state of a database among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsa_cli.exceptions import SchemaBehind

if TYPE_CHECKING:
    from alembic.script import Script


@dataclass(frozen=True)
class Revision:
    """One migration script."""

    revision: str
    down: tuple[str, ...]
    message: str
    file: str
    is_head: bool


@dataclass(frozen=True)
class Step:
    """One migration that was applied: `upgrade`, `downgrade` or `stamp`."""

    direction: str
    revision: str
    message: str


@dataclass(frozen=True)
class State:
    """The state of a database. An upgrade would apply `pending`, in its order."""

    current: tuple[str, ...]
    heads: tuple[str, ...]
    pending: tuple[Revision, ...]

    @property
    def at_head(self) -> bool:
        return set(self.current) == set(self.heads)

    def __str__(self) -> str:
        have = ", ".join(self.current) or "no revision"
        if self.at_head:
            return f"at head: {have}"
        more = f", {len(self.pending)} to apply" if self.pending else ""
        return f"not at head: has {have}, head is {', '.join(self.heads) or 'none'}{more}"

    def behind(self) -> SchemaBehind:
        """The error, with exit code 5, for a database that is not at head."""
        return SchemaBehind(
            f"the schema is {self}",
            details=[f"{each.revision}  {each.message}" for each in self.pending[:4]],
            hint="fsa db upgrade",
        )


def revision_of(script: Script) -> Revision:
    down = script.down_revision or ()
    return Revision(
        revision=script.revision,
        down=(down,) if isinstance(down, str) else tuple(down),
        message=script.doc,
        file=script.path,
        is_head=script.is_head,
    )


def step_of(info: Any) -> Step:
    if info.is_stamp:
        return Step("stamp", ", ".join(info.destination_revision_ids) or "base", "")
    if info.is_upgrade:
        return Step("upgrade", info.up_revision_id, info.up_revision.doc)
    return Step("downgrade", info.up_revision_id, info.up_revision.doc)


def change_of(diff: Any) -> str:
    """One change that autogenerate found, as `add column orders.item`."""
    if isinstance(diff, list):  # several changes of one column
        return ", ".join(dict.fromkeys(map(change_of, diff)))
    kind, *rest = diff
    what = kind.replace("_", " ")
    if kind.startswith("modify_"):
        return f"{what.replace('modify', 'change')} of {'.'.join(filter(None, rest[:3]))}"
    if kind.endswith("_column"):
        return f"{what} {'.'.join(filter(None, rest[:2]))}.{rest[2].name}"
    item = rest[0]
    name = getattr(item, "fullname", None) or getattr(item, "name", None) or ""
    table = getattr(item, "table", None)
    on = f" on {table.fullname}" if table is not None and table is not item else ""
    return f"{what} {name}{on}".rstrip()

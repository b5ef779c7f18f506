"""Completions for the shell: the names of tasks, and of the manual's pages."""

from __future__ import annotations

import os

import typer

from fsa_cli.cli.fsa_context import Fsa


def task_names(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The tasks whose names begin with *incomplete*, with their summaries; none of a broken app."""
    silence, stdout = os.open(os.devnull, os.O_WRONLY), os.dup(1)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # for good: nothing that comes later belongs between a person's words
    try:
        Fsa().load()
    except Exception:
        return []
    finally:
        os.dup2(stdout, 1)
    from fsa_cli.tasks.registry import registry

    return [(task.name, task.summary) for task in registry if task.name.startswith(incomplete)]


def page_names(incomplete: str) -> list[tuple[str, str]]:
    """The manual's pages whose names begin with *incomplete*, with their summaries."""
    from fsa_cli.terminal import manual

    return [
        (page.name, page.summary) for page in manual.pages() if page.name.startswith(incomplete)
    ]

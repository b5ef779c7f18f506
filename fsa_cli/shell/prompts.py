"""The prompts of `fsa shell`: IPython, ptpython, or plain Python, the first that is installed.

In each of them `await` works, and a statement that breaks the transaction rolls it back.
"""

from __future__ import annotations

import code
import contextlib
import sys
import traceback
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from collections.abc import Callable
from importlib.util import find_spec
from types import CodeType
from typing import Any

from fsa_cli.exceptions import ConfigurationError
from fsa_cli.project.state_dir import make_private_file, make_state_dir
from fsa_cli.shell.session import Shell, await_hint
from fsa_cli.terminal.output import shown
from fsa_cli.terminal.user_code import is_user_file

_ROLLED_BACK = "(rolled back: what was not committed is gone)"
_HISTORY_LENGTH = 2000
_MODULES = {"ipython": "IPython", "ptpython": "ptpython", "python": "code"}


def choose(wish: str | None = None) -> str:
    """`ipython`, `ptpython` or `python`: the one wished for, or the first that is installed.

    Raises:
        ConfigurationError: There is no such prompt, or it is not installed.
    """
    if wish is None:
        return next(name for name, module in _MODULES.items() if find_spec(module))
    name = wish.lower()
    if name not in _MODULES:
        raise ConfigurationError(
            f"there is no prompt {wish!r} for fsa shell", hint=f"choose of {', '.join(_MODULES)}"
        )
    if find_spec(_MODULES[name]) is None:
        raise ConfigurationError(f"{name} is not installed", hint=f"pip install {name}")
    return name


def interact(shell: Shell, prompt: str, *, whole_tracebacks: bool = False) -> None:
    """Run the prompt until the person leaves.

    Args:
        prompt: As returned by `choose`.
        whole_tracebacks: Also SQLAlchemy's own frames, thirty lines for each wrong statement.

    Raises:
        SystemExit: They left with `exit(code)`.
    """
    shell.inside(shell.make_ready_to_await)
    shell.inside(_PROMPTS[prompt], shell, whole_tracebacks)


def _recover(shell: Shell, error: BaseException) -> None:
    """What follows the traceback of *error*."""
    if hint := await_hint(error):
        sys.stderr.write(f"hint: {hint}\n")
    if shell.recover(error):
        sys.stderr.write(_ROLLED_BACK + "\n")


def _history(name: str) -> str | None:
    """The file of a prompt's history; None, and why, if there can be none."""
    try:
        file = f"{make_state_dir()}/{name}"
        make_private_file(file)
    except OSError as exc:
        sys.stderr.write(f"no history is kept: {shown(str(exc))}\n")
        return None
    return file


def _ipython(shell: Shell, whole: bool) -> None:
    from IPython.terminal import prompts as terminal_prompts
    from IPython.terminal.ipapp import TerminalIPythonApp
    from sqlalchemy.exc import SQLAlchemyError
    from traitlets.config import Config

    config = Config()
    config.TerminalIPythonApp.display_banner = True
    config.TerminalInteractiveShell.banner1 = f"IPython on Python {_version()}\n"
    config.TerminalInteractiveShell.banner2 = shell.banner + "\n"
    config.TerminalInteractiveShell.enable_tip = False
    config.TerminalInteractiveShell.confirm_exit = False
    config.HistoryManager.hist_file = _history("ipython.sqlite") or ":memory:"

    module: Any = terminal_prompts

    class Labelled(module.Prompts):  # type: ignore[misc]
        def in_prompt_tokens(self) -> list[Any]:
            return [(module.Token.Prompt, f"{shell.label} "), *super().in_prompt_tokens()]

    if shell.label:
        config.TerminalInteractiveShell.prompts_class = Labelled

    def show(ipython: Any, kind: Any, error: BaseException, tb: Any, tb_offset: Any = None) -> None:
        sys.stderr.write(_traceback(error, whole))

    def after_cell(result: Any) -> None:
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            _recover(shell, error)

    app: Any = TerminalIPythonApp.instance(config=config)
    app.initialize([])
    ipython = app.shell
    ipython.user_ns.update(shell.names)
    ipython.user_ns_hidden.update(shell.names)
    ipython.loop_runner = shell.wait_for
    ipython.autoawait = True
    ipython.events.register("post_run_cell", after_cell)
    if not whole:
        ipython.set_custom_exc((SQLAlchemyError,), show)
    app.start()


def _ptpython(shell: Shell, whole: bool) -> None:
    from ptpython.prompt_style import ClassicPrompt
    from ptpython.repl import PythonRepl

    class Labelled(ClassicPrompt):
        def in_prompt(self) -> Any:
            inherited: Any = super().in_prompt()
            return [("class:prompt", f"{shell.label} "), *inherited]

    class Repl(PythonRepl):
        def eval(self, line: str) -> object:
            try:
                compiled = self._compile_with_flags(line, "eval")
            except SyntaxError:
                compiled = self._compile_with_flags(line, "exec")
            result = shell.execute(compiled)
            if result is not None:
                self._store_eval_result(result)
            return result

        def _handle_exception(self, e: BaseException) -> None:
            if _is_wall(e, whole):
                sys.stderr.write(_traceback(e, whole))
            else:
                super()._handle_exception(e)
            _recover(shell, e)

        def _handle_keyboard_interrupt(self, e: KeyboardInterrupt) -> None:
            super()._handle_keyboard_interrupt(e)
            _recover(shell, e)

    sys.stdout.write(f"ptpython on Python {_version()}\n\n{shell.banner}\n\n")
    repl = Repl(
        get_globals=lambda: shell.names,
        get_locals=lambda: shell.names,
        history_filename=_history("ptpython"),
    )
    repl.confirm_exit = False
    if shell.label:
        repl.all_prompt_styles["fsa"] = Labelled()
        repl.prompt_style = "fsa"
    repl.run()


class _Console(code.InteractiveConsole):
    """The plain prompt: Python's own console, with `await`."""

    def __init__(self, shell: Shell, whole: bool) -> None:
        super().__init__(shell.names, filename="<fsa shell>")
        self.compile.compiler.flags |= PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._shell = shell
        self._whole = whole

    def runcode(self, code: CodeType) -> None:
        try:
            self._shell.execute(code)
        except SystemExit:
            raise
        except BaseException as exc:
            self.write(_traceback(exc, self._whole))
            _recover(self._shell, exc)


def _plain(shell: Shell, whole: bool) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            stack.callback(_edit_lines(shell))
        console = _Console(shell, whole)
        sys.ps1 = f"{shell.label} >>> " if shell.label else ">>> "
        console.interact(banner=f"Python {_version()}\n\n{shell.banner}\n", exitmsg="")


def _edit_lines(shell: Shell) -> Callable[[], None]:
    """Give the plain prompt history and completion; returns a function that saves the history."""
    import readline
    import rlcompleter

    readline.set_completer(rlcompleter.Completer(shell.names).complete)
    readline.parse_and_bind("tab: complete")
    history = _history("python")
    if history is None:
        return lambda: None
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(_HISTORY_LENGTH)

    def save() -> None:
        with contextlib.suppress(OSError):
            readline.write_history_file(history)

    return save


def _is_wall(error: BaseException, whole: bool) -> bool:
    """Whether most of *error*'s traceback is SQLAlchemy's, and nobody asked for that."""
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, SQLAlchemyError) and not whole


def _traceback(error: BaseException, whole: bool) -> str:
    """*error*'s traceback from what the person wrote on; without a wall's installed frames."""
    entry = error.__traceback__
    while entry is not None and not is_user_file(entry.tb_frame.f_code.co_filename):
        entry = entry.tb_next
    if not _is_wall(error, whole):
        return shown("".join(traceback.format_exception(type(error), error, entry)))
    frames = [frame for frame in traceback.extract_tb(entry) if is_user_file(frame.filename)]
    said = [
        line
        for part in traceback.format_exception_only(error)
        for line in part.splitlines(keepends=True)
        if not line.startswith("(Background on this error")
    ]
    return shown("".join(["Traceback:\n", *traceback.format_list(frames), *said]))


def _version() -> str:
    return sys.version.split()[0]


_PROMPTS: dict[str, Callable[[Shell, bool], None]] = {
    "ipython": _ipython,
    "ptpython": _ptpython,
    "python": _plain,
}

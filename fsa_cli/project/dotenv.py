"""Files of `NAME=value` lines, as python-dotenv reads them."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

from fsa_cli.exceptions import ConfigurationError

# What makes the loader, an interpreter, a shell or a client load or run something else: no file of
# a checkout decides that for us and for what we start.
_STEERING = re.compile(
    r"""(?x)
    LD_\w+ | DYLD_\w+ | GCONV_PATH | GLIBC_TUNABLES | LOCPATH | NLSPATH | HOSTALIASES | RES_OPTIONS
    | PATH | HOME | SHELL | IFS | ENV | BASH\w+ | SHELLOPTS | PS4 | PROMPT_COMMAND | INPUTRC
    | EDITOR | VISUAL | PAGER | LESS\w* | BROWSER | TERMINFO\w*
    | PYTHON\w+ | IPYTHONDIR | PTPYTHON_\w+
    | XDG_CONFIG_HOME | XDG_CONFIG_DIRS | XDG_STATE_HOME
    | OPENSSL_CONF | OPENSSL_MODULES | OPENSSL_ENGINES | SSLKEYLOGFILE
    | NODE_OPTIONS | PERL5OPT | PERL5LIB | RUBYOPT | RUBYLIB | JAVA_TOOL_OPTIONS
    | PSQL\w+ | PGSYSCONFDIR | MYSQL_HOME | LIBMYSQL_\w+ | MARIADB_PLUGIN_DIR | SQLITE_HISTORY
    | KRB5_CONFIG | GSS_MECH_CONFIG | SASL_PATH | SASL_CONF_PATH | COVERAGE_PROCESS_\w+
    """
)
_HARMLESS = re.compile(
    r"""(?x) PYTHON(
    UNBUFFERED | DONTWRITEBYTECODE | HASHSEED | UTF8 | IOENCODING | FAULTHANDLER | ASYNCIODEBUG
    | DEVMODE | TRACEMALLOC | OPTIMIZE | MALLOC | NODEBUGRANGES | SAFEPATH | NOUSERSITE
    )"""
)


def find(directory: Path) -> Path | None:
    """The nearest `.env`, from *directory* up to the root of its repository.

    Outside a repository only *directory* itself is looked at: a stray file in a parent that has
    nothing to do with the project must not choose its database.
    """
    root = repository(directory) or directory
    for place in (directory, *directory.parents):
        if (place / ".env").is_file():
            return place / ".env"
        if place == root:
            break
    return None


def repository(directory: Path) -> Path | None:
    """The root of the repository that *directory* is in."""
    above = (directory, *directory.parents)
    return next((place for place in above if (place / ".git").exists()), None)


def read(path: Path) -> dict[str, str]:
    """The variables of a file; a name without a value is none.

    `${NAME}` and `${NAME:-default}` are expanded. A variable of the environment goes before one of
    the file, as for `load_dotenv()`.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    # Both take 10 ms to import, and most projects have no such file.
    from dotenv.main import DotEnv
    from dotenv.parser import parse_stream

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc}") from exc
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or "\0" in binding.original.string:
            # The line itself may hold a secret, so it is not shown.
            blank = len(binding.original.string) - len(binding.original.string.lstrip())
            number = binding.original.line + binding.original.string[:blank].count("\n")
            raise ConfigurationError(
                f"{path}:{number} is not a line of the form NAME=value", hint="NAME='a value'"
            )
    values = DotEnv(None, io.StringIO(text), override=False).dict()
    return {n: value for n, value in values.items() if value is not None and "=" not in n}


def steers(name: str) -> bool:
    """Whether a variable has other programs, or Python itself, load or run something else."""
    return bool(_STEERING.fullmatch(name)) and not _HARMLESS.fullmatch(name)


def export(variables: Mapping[str, str]) -> dict[str, str]:
    """Put *variables* into the environment, and replace none; those whose value is now there."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    return {name: value for name, value in variables.items() if os.environ[name] == value}

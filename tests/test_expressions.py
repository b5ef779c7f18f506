"""No text, however long and whatever it is made of, keeps a regular expression of ours busy."""

import ast
import importlib
import pkgutil
import random
import re
import time
from pathlib import Path

import pytest

import fastapi_sqlalchemy
import fsa_cli

pytestmark = pytest.mark.slow

#: Pieces of what meets them: words of SQL, of secrets, of URLs, of cron, quotes, spaces.
PIECES = [
    *"aZ0_.-+/:@'\"`\\()[]{}<>=,;#?&$% \t\n\r\0\x1b\u202e\u00e9",
    *("  ", "''", '""', "\\'", '\\"', "$$", "$a$", "--", "/*", "*/", "://", "a://a:", "http://a:"),
    *("password", "token=", "token='", 'secret: "', "api_key", "pwd ", "0123456789abcdef"),
    *(
        "insert into a ",
        "update a ",
        "on conflict ",
        "do update ",
        "(insert a",
        "create ",
        "begin;",
    ),
    *("trigger ", "rollback to a ", "set session ", "every 1", "1 a", "1a", "a b", "\n\n", "\\\n"),
    *(
        "export A=b\n",
        ":param a",
        "a (b)",
        "**a",
        "line\n  ",
        "\\\\",
        "lock ",
        "or ",
        "ignore ",
        "a.",
    ),
]
LENGTH = 20_000
#: A linear search takes 1 ms at that length; a quadratic one takes seconds.
LIMIT_S = 0.25


ANCHORED = {"match", "fullmatch"}


def expressions() -> dict[str, tuple[re.Pattern[str], set[str]]]:
    """Each compiled one of a module, each that is written out in a call of `re`, and its uses."""
    found: dict[str, tuple[re.Pattern[str], set[str]]] = {}
    for package in (fastapi_sqlalchemy, fsa_cli):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations.default" in info.name or info.name.endswith("__main__"):
                continue
            module = importlib.import_module(info.name)
            assert module.__file__ is not None
            source = Path(module.__file__).read_text("utf-8")
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                    uses = set(re.findall(rf"\b{name}\.(\w+)", source))
                    found.setdefault(value.pattern, (value, set()))[1].update(uses)
            for node in ast.walk(ast.parse(source)):
                match node:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id="re"), attr=attr),
                        args=[ast.Constant(value=str(pattern)), *_],
                    ) if attr in ("sub", "search", "match", "fullmatch", "split"):
                        found.setdefault(pattern, (re.compile(pattern), set()))[1].add(attr)
    return found


@pytest.mark.parametrize(
    ("pattern", "uses"), [pytest.param(*each, id=key[:40]) for key, each in expressions().items()]
)
def test_a_search_takes_time_that_grows_with_the_text_alone(
    pattern: re.Pattern[str], uses: set[str]
) -> None:
    choose = random.Random(pattern.pattern)
    texts = [piece * (LENGTH // len(piece)) for piece in PIECES]
    for _ in range(120):
        pieces = choose.choices(PIECES, k=choose.randint(2, 4))
        unit = "".join(pieces[1:])
        texts.append(pieces[0] + unit * (LENGTH // len(unit)) + choose.choice(PIECES))

    for text in texts:
        searches = [pattern.match, pattern.fullmatch]
        for search in searches if uses <= ANCHORED else [*searches, pattern.findall]:
            start_s = time.process_time()
            search(text)
            took_s = time.process_time() - start_s
            assert took_s < LIMIT_S, (search.__name__, text[:60], took_s)

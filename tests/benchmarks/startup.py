"""What starting `fsa` costs, beside starting Python, a Typer program and the app alone."""

import argparse
import contextlib
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

FSA = str(Path(sysconfig.get_path("scripts"), "fsa"))

FILES = {
    "pyproject.toml": "",
    "main.py": """
from fastapi import FastAPI
from fastapi_sqlalchemy import DBSessionMiddleware

app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url="sqlite://")
""",
    "tasks.py": """
from fsa_cli import task


@task
def nothing() -> None:
    pass
""",
    "typer_program.py": """
import typer

app = typer.Typer()


@app.command()
def hello(name: str = "world") -> None:
    print(name)


app()
""",
}


@dataclass
class Contestant:
    """One command line, started anew in each round."""

    name: str
    argv: list[str]
    walls_ms: list[float] = field(default_factory=list)
    cpus_ms: list[float] = field(default_factory=list)

    def round(self, environ: dict[str, str]) -> None:
        nothing = [(os.POSIX_SPAWN_OPEN, each, os.devnull, os.O_RDWR, 0) for each in range(3)]
        started = time.perf_counter()
        pid = os.posix_spawn(self.argv[0], self.argv, environ, file_actions=nothing)
        _, status, used = os.wait4(pid, 0)
        self.walls_ms.append((time.perf_counter() - started) * 1000)
        self.cpus_ms.append((used.ru_utime + used.ru_stime) * 1000)
        assert status == 0, f"{self.name} ended with {os.waitstatus_to_exitcode(status)}"

    @property
    def wall_ms(self) -> float:
        return statistics.median(self.walls_ms)

    @property
    def cpu_ms(self) -> float:
        return statistics.median(self.cpus_ms)


def measure(
    title: str, contestants: list[Contestant], rounds: int, environ: dict[str, str]
) -> None:
    """Run the contestants in turns and print each beside the first."""
    for contestant in contestants:  # compiles what is imported
        contestant.round(environ)
        contestant.walls_ms.clear()
        contestant.cpus_ms.clear()
    for _ in range(rounds):
        for contestant in contestants:
            contestant.round(environ)
    print(f"\n{title}")
    first = contestants[0]
    for each in contestants:
        print(
            f"  {each.name:34} wall {each.wall_ms:7.1f} ms {each.wall_ms / first.wall_ms:5.2f} x"
            f" {each.wall_ms - first.wall_ms:+8.1f} ms"
            f"   CPU {each.cpu_ms:7.1f} ms {each.cpu_ms / first.cpu_ms:5.2f} x"
            f" {each.cpu_ms - first.cpu_ms:+8.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, text in FILES.items():
            Path(name).write_text(text)
        environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPYCACHEPREFIX": str(Path(folder, "compiled")),
            "FSA_STATE_DIR": str(Path(folder, "state")),
        }
        os.environ["FSA_STATE_DIR"] = environ["FSA_STATE_DIR"]
        from fsa_cli.processes import heartbeat

        heartbeat.beat()
        python = sys.executable
        measure(
            "Probes: at most 2 x",
            [
                Contestant("python -c pass", [python, "-c", "pass"]),
                Contestant("fsa --version", [FSA, "--version"]),
                Contestant("fsa health live", [FSA, "health", "live"]),
            ],
            options.rounds,
            environ,
        )
        measure(
            "Help: at most 1.0 x",
            [
                Contestant("a one-command Typer program", [python, "typer_program.py", "--help"]),
                Contestant("fsa --help", [FSA, "--help"]),
            ],
            options.rounds,
            environ,
        )
        measure(
            "A task: at most +60 ms",
            [
                Contestant("import of the app and its tasks", [python, "-c", "import main, tasks"]),
                Contestant("fsa run-task nothing", [FSA, "run-task", "nothing"]),
            ],
            options.rounds,
            environ,
        )


if __name__ == "__main__":
    main()

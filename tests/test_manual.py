"""The manual's examples are run as they are written there."""

import configparser
import json
import re
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from fsa_cli.terminal import manual
from support.manual import blocks, manual_blocks, sh, text_of, write_files
from support.processes import Start, run, run_sh
from support.waiting import wait_until
from support.web import ServedProcess

pytestmark = pytest.mark.slow

RUN_HERE = {
    ("first-steps", "A task"),
    ("first-steps", "A schedule"),
    ("first-steps", "In the background"),
    ("tasks", "Its run"),
    ("scheduling", "What can be written"),
    ("shell", "The shell"),
    ("database", "The database"),
    ("database", "Migrations"),
    ("health", "Health and alerts"),
    ("trouble", "First"),
}


def yaml_command(manifest: str) -> list[str]:
    """A manifest's only `command`, which is written as a list that is JSON too."""
    (words,) = re.findall(r"command: (\[.*?\])$", manifest, re.MULTILINE | re.DOTALL)
    command: list[str] = json.loads(words)
    return command


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The project that the manual's files make."""
    write_files(manual_blocks(), tmp_path)
    run_sh("fsa run-task create_tables", tmp_path)
    return tmp_path


def test_every_sh_block_is_run() -> None:
    assert {(b.page, b.heading) for b in manual_blocks() if b.language == "sh"} == RUN_HERE


@pytest.mark.parametrize("page", [page.name for page in manual.pages()])
def test_every_python_block_is_python(page: str) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{page}: {block.heading}", "exec")


def test_the_route_stores_and_lists_orders(
    shop: Path, serve_process: Callable[..., AbstractContextManager[ServedProcess]]
) -> None:
    with serve_process("main:app", cwd=shop) as served:
        created = httpx.post(f"{served.base_url}/orders", json={"item": "tea"})
        assert (created.status_code, created.json()) == (201, 1)
        assert httpx.get(f"{served.base_url}/orders").json() == ["tea"]
        assert httpx.get(f"{served.base_url}/readyz").json()["ok"] is True


def test_the_task_ships_five_of_six_orders(shop: Path) -> None:
    run_sh(
        """fsa shell -c 'session.add_all(Order(item="tea") for _ in range(6))
session.commit()'""",
        shop,
    )
    listed = run_sh(sh("first-steps", "A task"), shop).stdout
    assert "create_tables" in listed
    assert "ship" in listed
    open_orders = "print(session.query(Order).filter_by(shipped=False).count())"
    assert run_sh(f"fsa shell -c '{open_orders}'", shop).stdout == "1\n"


def test_the_schedule_is_listed_and_hosted_until_it_is_told_to_stop(
    shop: Path, fsa_process: Start
) -> None:
    listing, hosting = sh("first-steps", "A schedule").splitlines()
    assert "count_open_orders" in run_sh(listing, shop).stdout
    assert hosting == "fsa scheduler start"
    process = fsa_process("scheduler", "start", cwd=shop)
    process.wait_for("count_open_orders")
    looked = run_sh(sh("first-steps", "A schedule", 1), shop).stdout
    assert re.search(r"\tcount_open_orders\tsucceeded\t", looked)
    assert re.search(r"\tscheduler\talive\t", looked)
    assert process.stop(signal.SIGTERM).returncode == 0, process


def test_a_request_leaves_a_task_to_a_worker(
    shop: Path,
    serve_process: Callable[..., AbstractContextManager[ServedProcess]],
    fsa_process: Start,
) -> None:
    with serve_process("main:app", cwd=shop) as served:
        httpx.post(f"{served.base_url}/orders", json={"item": "tea"})
        httpx.post(f"{served.base_url}/orders", json={"item": "cake"})
        asked = httpx.post(f"{served.base_url}/orders/cake/ship")
        assert asked.status_code == 202
    by_hand, working = sh("first-steps", "In the background").splitlines()
    run_id = run_sh(by_hand, shop).stdout.strip()
    assert working == "fsa worker start"
    process = fsa_process("worker", "start", cwd=shop)
    for each in (asked.json(), run_id):
        wait_until(lambda each=each: "succeeded" in run_sh(f"fsa runs show {each}", shop).stdout)  # type: ignore[misc]
    open_orders = "print(session.query(Order).filter_by(shipped=False).count())"
    assert run_sh(f"fsa shell -c '{open_orders}'", shop).stdout == "0\n"
    assert process.stop(signal.SIGTERM).returncode == 0, process


def test_the_shell_runs_code_and_standard_input(shop: Path) -> None:
    assert run_sh(sh("shell", "The shell"), shop).stdout.splitlines()[0] == "0"
    counted = run_sh("fsa shell -c 'print(session.query(Order).count())'", shop)
    assert counted.stdout == "1\n"


def test_a_task_that_is_given_its_run_reminds(shop: Path) -> None:
    add = "session.add(Order(item='tea')); session.commit()"
    run_sh(f'fsa shell -c "{add}"', shop)
    shown = run_sh("exec 2>&1\n" + sh("tasks", "Its run"), shop).stdout
    assert "--limit" in shown
    assert "\n1\nremind succeeded" in shown


def test_a_schedule_is_listed_previewed_and_tested(shop: Path) -> None:
    shown = run_sh(sh("scheduling", "What can be written"), shop).stdout
    assert "count_open_orders\tevery 10s\tUTC\t" in shown
    assert "fires\tyes" in shown


def test_the_database_is_shown_and_serves_the_models(shop: Path) -> None:
    shown = run_sh("exec 2>&1\n" + sh("database", "The database"), shop).stdout
    assert "orders\t0\texact" in shown
    assert "shipped\tboolean\tno" in shown
    assert "the database has every table and column of the models" in shown


def test_migrations_begin_without_an_ini_and_reach_head(shop: Path) -> None:
    (shop / "shop.db").unlink()
    done = run_sh(sh("database", "Migrations"), shop).stdout
    assert done.startswith("migrations/versions/")
    assert "current, head" in done


def test_what_is_wrong_is_shown_on_three_pages(shop: Path) -> None:
    shown = run_sh(sh("trouble", "First"), shop).stdout
    assert "[tool.fsa] tasks in pyproject.toml" in shown
    assert "POST\t/orders\tcreate_order\tmain.py:" in shown
    assert shown.endswith("problems\n  none\n")


def test_health_is_well_and_names_the_database(shop: Path, fsa_process: Start) -> None:
    process = fsa_process("scheduler", "start", cwd=shop)
    process.wait_for("count_open_orders")
    shown = run_sh(sh("health", "Health and alerts"), shop).stdout
    assert "default" in shown
    assert "scheduler\tok" in shown


def test_the_unit_starts_the_scheduler_and_outlasts_its_grace(
    shop: Path, fsa_process: Start
) -> None:
    (block,) = [b for b in blocks("production") if b.language == "ini"]
    unit = configparser.ConfigParser()
    unit.read_string(block.text)
    program, *words = unit["Service"]["ExecStart"].split()
    assert Path(program).name == "fsa"
    assert int(unit["Service"]["TimeoutStopSec"]) > int(words[words.index("--grace") + 1])
    process = fsa_process(*words, cwd=shop)
    process.wait_for("count_open_orders")
    assert process.stop(signal.SIGTERM).returncode == 0, process


def test_the_deployment_starts_the_scheduler_and_its_probes_answer(
    shop: Path, fsa_process: Start
) -> None:
    manifest = (shop / "deployment.yaml").read_text()
    program, *words = yaml_command(manifest)
    assert program == "fsa"
    (seconds,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", manifest)
    assert int(seconds) > int(words[words.index("--grace") + 1])
    port = words.index("--port") + 1
    assert f"containerPort: {words[port]}\n" in manifest
    assert f'prometheus.io/port: "{words[port]}"\n' in manifest
    process = fsa_process(*words[:port], "0", *words[port + 1 :], cwd=shop)
    process.wait_for('"succeeded"')
    (served,) = re.findall(r'"port": ?(\d+)', process.stderr)
    paths = re.findall(r"path: (\S+)", manifest)
    assert paths == ["/livez", "/readyz"]
    base_url = f"http://127.0.0.1:{served}"
    assert [httpx.get(base_url + path).status_code for path in paths] == [200, 200]
    told = httpx.get(f"{base_url}/metrics").text
    for name in re.findall(r"`(fsa_\w+)`", text_of("production")):
        assert f"{name}{{" in told or f"{name} " in told, name
    assert process.stop(signal.SIGTERM).returncode == 0, process


def test_one_container_serves_and_keeps_the_schedule(
    shop: Path, serve_process: Callable[..., AbstractContextManager[ServedProcess]]
) -> None:
    with serve_process("one:app", cwd=shop, env={"PYTHONHASHSEED": "0"}) as served:
        served.process.wait_for("count_open_orders  succeeded")
        assert httpx.get(f"{served.base_url}/orders").json() == []


def test_the_cron_job_runs_what_is_due(shop: Path) -> None:
    done = run(*yaml_command((shop / "cronjob.yaml").read_text()), cwd=shop)
    assert done.returncode == 0, done.stderr


def test_the_report_runs_outside_of_requests(shop: Path) -> None:
    done = run(sys.executable, "report.py", cwd=shop)
    assert (done.stdout, done.returncode) == ("[1, 1]\n", 0), done.stderr


def test_events_and_messages_are_committed_one_by_one(
    shop: Path, serve_process: Callable[..., AbstractContextManager[ServedProcess]]
) -> None:
    with serve_process("live:app", cwd=shop) as served:
        events = httpx.get(f"{served.base_url}/events").text
        assert events == "data: tea\n\ndata: coffee\n\n"
        with connect(f"{served.base_url.replace('http', 'ws')}/orders") as websocket:
            websocket.send("milk")
            assert json.loads(websocket.recv()) == ["tea", "coffee", "milk"]
        assert httpx.get(f"{served.base_url}/orders").json() == ["tea", "coffee", "milk"]


def test_the_shops_own_test_passes_and_leaves_nothing(shop: Path) -> None:
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=shop)
    assert "1 passed" in done.stdout, done.stdout
    counted = run_sh("fsa shell -c 'print(session.query(Order).count())'", shop)
    assert counted.stdout == "0\n"


def test_two_databases_are_served_side_by_side(tmp_path: Path) -> None:
    (block,) = [
        b
        for b in blocks("configuring")
        if 'Database("reports")' in b.text and b.language == "python"
    ]
    (tmp_path / "both.py").write_text(
        f"{block.text}\n\nfrom fastapi.testclient import TestClient\n\n"
        'print(*TestClient(app).get("/").json())\n'
    )
    done = run(sys.executable, "both.py", cwd=tmp_path)
    assert done.stdout == "sqlite:///shop.db sqlite:///reports.db\n", done.stderr

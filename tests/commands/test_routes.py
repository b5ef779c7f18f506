"""`fsa routes`: what is matched, in its order, and where it is written."""

import json

MAIN = """
    from functools import partial, wraps
    from fastapi import APIRouter, FastAPI, WebSocket
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.staticfiles import StaticFiles

    app = FastAPI(openapi_url=None)

    def traced(function):
        @wraps(function)
        def inner(*args, **kwargs):
            return function(*args, **kwargs)
        return inner

    @app.get("/users", name="everybody")
    @traced
    def users(): ...

    @app.api_route("/users/{name}", methods=["PUT", "PATCH"])
    async def change(name: str): ...

    inner = APIRouter(prefix="/inner")

    @inner.get("/x")
    def x(): ...

    @inner.websocket("/ws")
    async def talk(socket: WebSocket): ...

    outer = APIRouter(prefix="/v1")
    outer.include_router(inner)
    app.include_router(outer)

    sub = FastAPI(openapi_url=None)

    @sub.post("/y")
    def y(): ...

    app.mount("/sub", sub)
    app.mount("/static", StaticFiles(directory="."), name="static")

    class Endpoint:
        async def __call__(self, scope, receive, send): ...

    app.router.routes.append(Route("/raw", Endpoint()))
"""


def test_every_route_is_listed_with_its_line(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, main=MAIN)
    lines = [line.strip() for line in (tmp_path / "main.py").read_text().splitlines()]

    def at(source: str) -> str:
        return f"main.py:{lines.index(source) + 1}"

    done = fsa("routes")

    assert done.returncode == 0, done.stderr
    assert [tuple(line.split("\t")) for line in done.stdout.splitlines()] == [
        ("method", "path", "name", "endpoint"),
        ("GET", "/users", "everybody", at('@app.get("/users", name="everybody")')),
        (
            "PATCH, PUT",
            "/users/{name}",
            "change",
            at('@app.api_route("/users/{name}", methods=["PUT", "PATCH"])'),
        ),
        ("GET", "/v1/inner/x", "x", at('@inner.get("/x")')),
        ("WEBSOCKET", "/v1/inner/ws", "talk", at('@inner.websocket("/ws")')),
        ("POST", "/sub/y", "y", at('@sub.post("/y")')),
        ("any", "/static/*", "static", "starlette.staticfiles.StaticFiles"),
        ("any", "/raw", "Endpoint", at("class Endpoint:")),
    ]


def test_json_has_every_field(fsa, write_app, tmp_path) -> None:
    write_app(tmp_path, main=MAIN)

    first = json.loads(fsa("routes", "--json").stdout)[0]

    assert first == {
        "methods": ["GET"],
        "path": "/users",
        "name": "everybody",
        "endpoint": "main.users",
        "file": str(tmp_path / "main.py"),
        "line": first["line"],
    }

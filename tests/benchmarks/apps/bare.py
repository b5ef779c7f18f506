from typing import Any

from fastapi import FastAPI


def build(case: str, url: str) -> Any:
    app = FastAPI()

    @app.get("/")
    async def unused() -> dict[str, str]:
        return {"name": "ann"}

    return app

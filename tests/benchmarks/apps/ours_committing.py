from typing import Any

from apps import ours


def build(case: str, url: str) -> Any:
    return ours.build(case, url, commit_on_exit=True)

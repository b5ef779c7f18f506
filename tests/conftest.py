"""The fixtures of the whole suite live in `support`; this file only names them."""

pytest_plugins = [
    "support.databases",
    "support.models",
    "support.processes",
    "support.stores",
    "support.web",
]

"""The fixtures of the whole suite live in `support`; this file only names them."""

pytest_plugins = [
    "support.databases",
    "support.ledgers",
    "support.models",
    "support.processes",
    "support.shops",
    "support.stores",
    "support.web",
    "support.engines",
]

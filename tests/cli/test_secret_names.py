"""What is a secret is one in a task's parameters, in a URL, in a key and in a text."""

import inspect
import json

import pytest
from sqlalchemy import make_url

from fastapi_sqlalchemy.engines.urls import is_secret, masked
from fsa_cli.tasks.signature import signature_of
from fsa_cli.terminal.json_values import dumps
from fsa_cli.terminal.masking import mask
from fsa_cli.terminal.secret_names import is_secret_name

SECRET = [
    "password",
    "DB_PASSWD",
    "passphrase",
    "pwd",
    "client_secret",
    "auth_token",
    "credential",
    "aws_credentials",
    "api_key",
    "apikey",
    "access_key_id",
    "private_key",
    "signing_key",
]
PLAIN = ["user", "passage", "key_count", "item", "monkey", "sslmode"]
#: As parameters and keys; in a text what follows them is masked.
HARMLESS = ["secretary", "passwordless", "tokenizer", "token_type", "next_page_token"]


@pytest.mark.parametrize("name", SECRET)
def test_what_is_secret_in_one_place_is_secret_in_all(name: str) -> None:
    def task(value: str) -> None: ...

    given = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=str)
    task.__signature__ = inspect.Signature([given])  # type: ignore[attr-defined]
    (parameter,) = signature_of(task).parameters
    url = make_url("postgresql://h/d").update_query_dict({name: "hunter2"})

    assert is_secret_name(name)
    assert is_secret(name)
    assert parameter.is_secret
    assert "hunter2" not in masked(url)
    assert mask(f"{name}=hunter2") == f"{name}=***"
    assert mask(f"GET https://x.example/y?a=1&{name}=hunter2") == (
        f"GET https://x.example/y?a=1&{name}=***"
    )
    assert json.loads(dumps({name: "hunter2"})) == {name: "***"}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_word_with_a_secret_in_it_may_be_none(name: str) -> None:
    assert not is_secret_name(name)
    assert is_secret_name(f"{name}_secret")
    assert json.loads(dumps({name: "tea"})) == {name: "tea"}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_none_is_shown_everywhere(name: str) -> None:
    assert not is_secret_name(name)
    assert mask(f"{name}=tea") == f"{name}=tea"
    assert json.loads(dumps({name: "tea"})) == {name: "tea"}

"""Names of what nobody may read: one list for parameters of tasks, keys, and texts.

A URL's parameters have more of them (`fastapi_sqlalchemy.engines.urls.is_secret`): `key` and `sig`
alone are secret there.
"""

from __future__ import annotations

import re

__all__ = ["SECRET_NAME", "is_secret_name"]

#: A regular expression of the part of a name that makes it secret; for any case.
SECRET_NAME = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|"
    r"(?:api|access|auth|private|account|shared|encryption|signing|sas)[-_.]?key|"
    r"(?:db|database|smtp|mail|imap|user|admin|root|ftp|ssh|ldap|proxy|redis|rabbit(?:mq)?|"
    r"mongo(?:db)?|mysql|maria(?:db)?|pg|postgres(?:ql)?|broker)[-_.]?pass(?![a-z]))"
)
_SECRET_NAME = re.compile(SECRET_NAME, re.IGNORECASE)
#: What has such a part in its name, and is none: where one reads on, what a text was cut into.
_HARMLESS = re.compile(
    r"secretar(?:y|ies)|passwordless|tokeni[sz](?:er|ed|e|ation)s?|token_(?:type|count|limit)s?"
    r"|(?:page|next|continuation|max)_tokens?",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether the value that goes by *name* is a secret."""
    return _SECRET_NAME.search(_HARMLESS.sub("", name)) is not None

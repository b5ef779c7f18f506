"""`fsa shell`: the session, its names, its prompts."""

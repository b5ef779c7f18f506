"""The schedule, hosted: what is due, when, and the process that runs it."""

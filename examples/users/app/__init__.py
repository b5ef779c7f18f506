"""Users of every time zone: routes, tasks and a schedule on one `db`."""

"""The processes that run tasks: scheduler and worker, and their parts."""

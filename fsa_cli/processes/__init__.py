"""The processes that run tasks: scheduler, worker, and the parts they are made of."""

"""What the middleware needs of an app: its exception handlers and its pending middlewares."""

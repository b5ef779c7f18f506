"""Asking for runs and looking at them: enqueue, control, view."""

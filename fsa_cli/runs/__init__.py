"""Runs that somebody asks for: enqueue, control, view."""

"""Schedules and their fire times. It knows nothing of tasks."""

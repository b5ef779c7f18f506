"""Schedules and their fire times, without any knowledge of tasks."""

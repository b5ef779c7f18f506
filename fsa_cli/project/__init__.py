"""The user's project: settings, app, tasks, commands of its own."""

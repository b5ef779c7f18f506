"""The command line: flags, options, output of errors; nothing of what a command does."""

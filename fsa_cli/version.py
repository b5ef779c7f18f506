"""The version, as a constant: asking the installed metadata costs more than starting Python."""

VERSION = "1.0.0.dev0"

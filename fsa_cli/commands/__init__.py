"""The commands of `fsa`, a module each: load, call, print."""

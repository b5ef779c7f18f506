"""The checks of `fsa health`, and the page of `fsa doctor`."""

"""Which image comes when, and which crop of it: pure functions in numpy."""

"""Where the examples of each kind lie in raw data: a file for each kind, with a function ``find``."""

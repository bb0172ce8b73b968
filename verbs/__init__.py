"""The verbs of the command line, carried out: a module for each few of them, and what they share.  May know every room."""

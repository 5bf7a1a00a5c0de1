"""The command line, one file a verb: each parses its words, calls a function of the rooms below, and prints."""

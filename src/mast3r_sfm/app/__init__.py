"""The command line: a thin user of the library that displays, asks and configures."""

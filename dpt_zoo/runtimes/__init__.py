"""The runtimes of exported files, which check a file before they get it."""

"""Reference and artifact on the same samples wherever it is to run, and runtimes held against their target file."""

"""The command line: shows, compares and exports the files of this package."""

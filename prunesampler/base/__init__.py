"""Used by every other folder: checks of arguments, files, the processes of a run, progress bars."""

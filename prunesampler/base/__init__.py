"""What every room stands on: checks of arguments, files, the processes of a run, progress bars."""

"""Floor 6: the command line. One file a command; parsing, printing, exit codes; nothing else."""

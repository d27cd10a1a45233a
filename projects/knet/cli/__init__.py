"""The sub-commands of `knet`, a file each: flags, and a call of what Python users call, too."""

"""Places that run containers, one file each."""

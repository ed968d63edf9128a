"""Many photos: one function per photo, the folder of all results, and the processes that share the work."""

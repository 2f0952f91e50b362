"""Operations, one file each: its backends, its custom op and its entry in the dispatcher."""

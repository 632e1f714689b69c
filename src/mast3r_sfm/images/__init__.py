"""Images: from files, folders and globs to views of the size that the network wants."""

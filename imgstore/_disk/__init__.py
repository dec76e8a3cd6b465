"""What only the format of files in a folder needs."""

"""What only the LMDB format needs."""

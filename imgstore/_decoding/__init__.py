"""What only `imgstore.decoding` needs."""

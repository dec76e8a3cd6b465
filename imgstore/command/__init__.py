"""The command `imgstore`."""

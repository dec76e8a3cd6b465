"""All that is pytest: options, fixtures, progress."""

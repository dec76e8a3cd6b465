"""What is left of a store after a kill, a power cut, a full disk: ours beside what tutorials do."""

"""--against: whether a commit made storing or reading slower."""

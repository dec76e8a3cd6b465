"""What a run says: the tables of the terminal, the page, the answers."""

"""The ticket: its file, how one is made, carried to another network, exported."""

"""What the server counts of the requests that it answers: by whom, by which version, how well, and what it took."""

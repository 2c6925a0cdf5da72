"""The server: the api over HTTP, the loop inside, users, and what runs by the clock."""

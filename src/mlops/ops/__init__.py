"""Setting up hosts: `.env` files and join tokens."""

"""A self-hosted machine-learning platform for small teams."""

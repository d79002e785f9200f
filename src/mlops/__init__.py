"""A self-hosted machine-learning platform for small teams."""

__version__ = "0.1.0"

"""What runs flows: run pickup → code → environment → process → result."""

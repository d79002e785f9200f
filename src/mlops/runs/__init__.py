"""Flow runs as people look at them: followed, traced to where they come from, done again."""

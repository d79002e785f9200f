"""The experimenter: projects in which a data scientist tries ideas, with git, DVC and MLflow."""

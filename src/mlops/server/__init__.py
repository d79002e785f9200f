"""The server stack: its one-shot set-up, and how Prefect and MLflow are started."""

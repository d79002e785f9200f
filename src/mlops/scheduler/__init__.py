"""The door through which every flow comes: flow.yaml → bundle → S3 → Prefect deployment."""

"""The snapshot protocol: immutable manifests made visible by one conditional put."""

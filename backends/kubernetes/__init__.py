"""Kubernetes: groups as the cluster's own objects, kept by its own controllers."""

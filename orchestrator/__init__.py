"""Modelyard's control plane: from a YAML spec to containers that run a model."""

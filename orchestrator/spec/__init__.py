"""From YAML with positions to frozen models: what a user asked for, checked."""

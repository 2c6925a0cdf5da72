"""Values to text for people and to JSON for machines; knows no terminal and no file."""

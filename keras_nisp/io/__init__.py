"""Files that are written whole or not at all, the schema of JSON files, tables of text."""

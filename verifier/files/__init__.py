"""Files that a kill leaves whole and a stranger cannot misuse."""

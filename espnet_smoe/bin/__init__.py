"""Command lines, one module per stage or tool."""

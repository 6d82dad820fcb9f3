"""The older tools' own classes, one module a tool."""

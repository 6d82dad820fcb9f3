"""The trainer's parts; main.py puts them together."""

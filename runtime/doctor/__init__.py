"""The examination of a machine by `expertflow doctor`: facts are gathered, then judged."""

"""Explains waits for experts: takes the spans of a timeline, returns the longest waits with the cause of each."""

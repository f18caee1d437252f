"""What vectors are worth: tasks over public formats, baselines, intervals, a table and a page."""
